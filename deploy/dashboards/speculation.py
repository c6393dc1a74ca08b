"""*Speculation*: whether the drafts pay, and why not where not."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards import variables
from deploy.dashboards.page import page
from deploy.dashboards.panels import HALF, NO_REQUEST, THIRD, graph, number, promql, row
from deploy.dashboards.promql import LANE_AND_MODEL, MODEL, per_second, share

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


def tokens(fate: str, window: str = "$__rate_interval") -> str:
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
            span=THIRD,
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
            span=THIRD,
        )
    )
    return built.with_panel(
        number(
            "Draft tokens for one accepted",
            "What an accepted token costs in drafts. 1 is the best there is.",
            "No draft token was accepted in the last five minutes",
            promql(
                share(
                    " + ".join(tokens(fate, "5m") for fate in ("accepted", "rejected", "ignored")),
                    tokens("accepted", "5m"),
                ),
                "{{model}} with {{draft_model}}",
            ),
            span=THIRD,
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
            *(promql(tokens(fate), f"{{{{model}}}} {fate}") for fate in ("accepted", "rejected", "ignored")),
            stacked=True,
        )
    )
    return built.with_panel(
        graph(
            "Share of output from drafts",
            "Of the tokens that went to clients, those that a draft model proposed.",
            "No output in this time",
            promql(_from_drafts("$__rate_interval"), "{{model}}"),
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


def _from_drafts(window: str) -> str:
    output = per_second("opta_router_tokens_total", f'gen_ai_token_type="output", {LANE_AND_MODEL}', "model", window)
    return share(per_second("lmx_spec_draft_accepted_total", MODEL, "model", window), output)
