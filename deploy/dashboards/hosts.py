"""*Hosts and models*: whether the engine lives, what it holds, and whether we would know."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards import variables
from deploy.dashboards.page import page
from deploy.dashboards.panels import NO_REQUEST, NOT_REPORTING, THIRD, graph, number, promql, row
from deploy.dashboards.promql import GEN_AI, LANE_AND_MODEL, MODEL, growth, per_second, quantile

E2E = "gen_ai_server_request_duration_seconds"
_ANY = ((None, "green"), (1, "orange"), (3, "red"))


def hosts() -> Dashboard:
    """The dashboard."""
    built = page(
        "opta-hosts",
        "opta_router: Hosts and models",
        "The engine's process, the models in it, and what is lost on the way here.",
        variables.metrics(),
        variables.lane(),
        variables.model(),
    )
    for add in (_engine, _models, _prompt_caches, _failures):
        built = add(built)
    return built


def _engine(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Engine"))
    for title, description, metric in (
        ("Engines lost", "Host processes that died or hung, and were replaced.", "opta_host_restarts_total"),
        ("Requests resumed", "Requests that another host went on with.", "opta_requests_resumed_total"),
        ("Telemetry lost", "Spans, metrics and log lines that were dropped.", "opta_telemetry_dropped_total"),
    ):
        built = built.with_panel(
            number(
                title, f"{description} In the time shown.", NOT_REPORTING, promql(growth(metric), now=True), steps=_ANY
            )
        )
    built = built.with_panel(
        number(
            "Ready",
            "1 if requests are taken.",
            NOT_REPORTING,
            promql("min(opta_host_ready)"),
            steps=((None, "red"), (1, "green")),
        )
    )
    built = built.with_panel(
        number(
            "Last word",
            "Age of the newest metric.",
            NOT_REPORTING,
            promql("time() - max(timestamp(opta_lane_weight))", now=True),
            unit="s",
            steps=((None, "green"), (90, "red")),
        )
    )
    built = built.with_panel(
        number(
            "Reloads refused",
            "Configurations that were wrong, so that the old one stayed in force. In the time shown.",
            NOT_REPORTING,
            promql(growth("opta_config_reloads_total", 'outcome!="ok"'), now=True),
            steps=_ANY,
        )
    )
    built = built.with_panel(
        graph(
            "Memory of the device",
            "What the engine's process uses.",
            NOT_REPORTING,
            promql("sum(opta_host_memory_bytes)", "host"),
            unit="bytes",
        )
    )
    return built.with_panel(
        graph(
            "Engines lost, requests resumed",
            "When it happened.",
            NOT_REPORTING,
            promql("sum(increase(opta_host_restarts_total[$__rate_interval]))", "engines lost"),
            promql("sum(increase(opta_requests_resumed_total[$__rate_interval]))", "requests resumed"),
        )
    )


def _models(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Models"))
    built = built.with_panel(
        graph(
            "Memory",
            "What each model that is loaded needs.",
            "No model is loaded",
            promql(f"sum by (model) (opta_model_memory_bytes{{{MODEL}}})", "{{model}}"),
            unit="bytes",
            span=THIRD,
            stacked=True,
        )
    )
    built = built.with_panel(
        graph(
            "Requests",
            "Ended requests a second.",
            NO_REQUEST,
            promql(per_second("opta_router_requests_total", LANE_AND_MODEL, "model"), "{{model}}"),
            unit="reqps",
            span=THIRD,
        )
    )
    return built.with_panel(
        graph(
            "Tokens",
            "Prompt tokens taken in and answer tokens given out, a second.",
            NO_REQUEST,
            promql(
                per_second("opta_router_tokens_total", LANE_AND_MODEL, "model, gen_ai_token_type"),
                "{{model}} {{gen_ai_token_type}}",
            ),
            span=THIRD,
        )
    )


def _prompt_caches(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Prompt caches"))
    why_empty = "Nothing is kept: memory.prompt_caches is null, or no model was loaded since the start"
    built = built.with_panel(
        graph(
            "Kept",
            "Memory of the KV caches that wait for a prompt with the same beginning.",
            why_empty,
            promql(f"sum by (model) (opta_prompt_cache_memory_bytes{{{MODEL}}})", "{{model}}"),
            unit="bytes",
            span=THIRD,
            stacked=True,
        )
    )
    built = built.with_panel(
        graph(
            "Known tokens",
            "Prompt tokens a second that were not computed again.",
            why_empty,
            promql(per_second("opta_prompt_cache_reused_tokens_total", MODEL, "model"), "{{model}}"),
            span=THIRD,
        )
    )
    return built.with_panel(
        graph(
            "Hits, misses, evictions",
            "Prompts a second of which something was known, and nothing; entries that made room.",
            why_empty,
            *(
                promql(per_second(f"opta_prompt_cache_{what}_total", MODEL, "model"), f"{{{{model}}}} {what}")
                for what in ("hits", "misses", "evictions")
            ),
            span=THIRD,
        )
    )


def _failures(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Requests"))
    built = built.with_panel(
        graph(
            "Failures",
            "Requests a second that ended with an error, by its code.",
            "No request failed since the router's start",
            promql(per_second(f"{E2E}_count", f'error_type!="", {GEN_AI}', "error_type"), "{{error_type}}"),
            unit="reqps",
        )
    )
    return built.with_panel(
        graph(
            "Duration",
            "From arrival to the last token.",
            NO_REQUEST,
            *(
                promql(
                    quantile(q, E2E, GEN_AI, "gen_ai_request_model"),
                    f"{{{{gen_ai_request_model}}}} p{q * 100:g}",
                    exemplars=True,
                )
                for q in (0.5, 0.95)
            ),
            unit="s",
        )
    )
