"""*Speculation*: whether the drafts pay, and why not where not."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards import variables
from deploy.dashboards.page import page
from deploy.dashboards.panels import HALF, NO_REQUEST, QUARTER, graph, number, promql, row
from deploy.dashboards.promql import LANE_AND_MODEL, MODEL, WINDOW, per_second, share

NOTHING_COMPARED = "No draft token was compared in this time"
NO_DRAFT = "Nothing was drafted in this time"
PAIR = "model, draft_model"
FLOOR = 0.35
"""``speculation.min_acceptance``, as it comes."""


def speculation() -> Dashboard:
    """The dashboard."""
    built = page(
        "opta-speculation",
        "opta_router: Speculation",
        "What the draft models propose, what is accepted, and which requests do without.",
        variables.metrics(),
        variables.lane(),
        variables.model(),
    )
    for add in (_now, _tokens, _requests):
        built = add(built)
    return built


def tokens(fate: str, window: str = WINDOW) -> str:
    """Draft tokens a second of one fate (accepted, rejected, ignored), by pair."""
    return per_second(f"lmx_spec_draft_{fate}_total", MODEL, PAIR, window)


def _now(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Now"))
    built = built.with_panel(
        number(
            "Acceptance",
            "Of the draft tokens that were compared, the share that the target took. The router's own window.",
            "No pair has compared a draft token yet",
            promql(f"lmx_spec_acceptance_ratio{{{MODEL}}}", "{{model}} with {{draft_model}}"),
            unit="percentunit",
            span=QUARTER,
            steps=((None, "red"), (FLOOR, "yellow"), (0.6, "green")),
        )
    )
    built = built.with_panel(
        number(
            "Output from drafts",
            "Of the tokens that went to clients, the share that a draft model proposed.",
            "No output in the last five minutes",
            promql(_from_drafts("5m"), "{{model}}"),
            unit="percentunit",
            span=QUARTER,
        )
    )
    built = built.with_panel(
        number(
            "Accepted length",
            "Draft tokens that the target took in one of its passes, to which it added one of its own.",
            "Nothing was drafted in the last five minutes",
            promql(_accepted_length("5m"), "{{model}} with {{draft_model}}"),
            span=QUARTER,
        )
    )
    return built.with_panel(
        number(
            "Switched off",
            "1 while a pair does not speculate because too little was accepted; it is retried by itself.",
            "No pair has drafted yet",
            promql(f"max by ({PAIR}) (opta_spec_low_acceptance{{{MODEL}}})", "{{model}} with {{draft_model}}"),
            span=QUARTER,
            steps=((None, "green"), (1, "red")),
        )
    )


def _tokens(built: Dashboard) -> Dashboard:
    accepted, rejected = tokens("accepted"), tokens("rejected")
    built = built.with_row(row("Over time"))
    built = built.with_panel(
        graph(
            "Acceptance by pair",
            f"Accepted of compared. Below {FLOOR:g} (speculation.min_acceptance) drafting costs more than it gives.",
            NOTHING_COMPARED,
            promql(share(accepted, f"{accepted} + {rejected}"), "{{model}} with {{draft_model}}"),
            unit="percentunit",
            most=1,
        )
    )
    built = built.with_panel(
        graph(
            "Draft tokens",
            "Proposed is the sum of the others. Ignored: never compared, because the request ended first.",
            NO_DRAFT,
            promql(per_second("opta_spec_draft_proposed_total", MODEL, PAIR), "{{model}} proposed"),
            *(promql(tokens(fate), f"{{{{model}}}} {fate}") for fate in ("accepted", "rejected", "ignored")),
        )
    )
    built = built.with_panel(
        graph(
            "Accepted length",
            "Draft tokens that the target took in one of its passes, to which it added one of its own.",
            NO_DRAFT,
            promql(_accepted_length(WINDOW), "{{model}} with {{draft_model}}"),
        )
    )
    built = built.with_panel(
        graph(
            "Acceptance by place in the round",
            "Accepted of compared, for the first, second, … draft token of a round.",
            NOTHING_COMPARED,
            promql(
                share(_by_position("accepted"), _by_position("compared")),
                "{{model}}, token {{position}}",
            ),
            unit="percentunit",
            most=1,
        )
    )
    built = built.with_panel(
        graph(
            "Prompt lookup",
            "What the text itself proposed: its rounds, and its part of the draft tokens, a second.",
            NO_DRAFT,
            *(
                promql(per_second(f"opta_spec_lookup_{what}_total", MODEL, PAIR), f"{{{{model}}}} {what}")
                for what in ("rounds", "proposed", "accepted")
            ),
        )
    )
    return built.with_panel(
        graph(
            "Share of output from drafts",
            "Of the tokens that went to clients, those that a draft model proposed.",
            "No output in this time",
            promql(_from_drafts(WINDOW), "{{model}}"),
            unit="percentunit",
            span=HALF,
            most=1,
        )
    )


def _requests(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Requests"))
    built = built.with_panel(
        graph(
            "Asked for, and active",
            "Requests a second that asked for speculation, and those of them that got it.",
            NO_REQUEST,
            promql(
                per_second("opta_spec_requests_total", f'requested="true", {MODEL}', "model"), "{{model}} requested"
            ),
            promql(
                per_second("opta_spec_requests_total", f'requested="true", active="true", {MODEL}', "model"),
                "{{model}} active",
            ),
            unit="reqps",
        )
    )
    return built.with_panel(
        graph(
            "Why not",
            "Requests a second that did without, by the reason: denied, not_approved, lane, client_off, …",
            "Every request since the router's start speculated, or there was none",
            promql(
                per_second("opta_spec_requests_total", f'active="false", {MODEL}', "model, reason"),
                "{{model}} {{reason}}",
            ),
            unit="reqps",
            stacked=True,
        )
    )


def _accepted_length(window: str) -> str:
    return share(tokens("accepted", window), per_second("opta_spec_rounds_total", MODEL, PAIR, window))


def _by_position(fate: str) -> str:
    return per_second(f"opta_spec_position_{fate}_total", MODEL, f"{PAIR}, position")


def _from_drafts(window: str) -> str:
    output = per_second("opta_router_tokens_total", f'gen_ai_token_type="output", {LANE_AND_MODEL}', "model", window)
    return share(per_second("lmx_spec_draft_accepted_total", MODEL, "model", window), output)
