"""*Traces*: single requests, the slow, the failed, the resumed, and what they were about."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards import variables
from deploy.dashboards.page import page
from deploy.dashboards.panels import HALF, NO_TRACE, QUARTER, THIRD, graph, row, rows, traceql
from deploy.dashboards.speculation import FLOOR
from deploy.dashboards.traceql import requests, spans, table

_QUANTILES = "0.5, 0.95"


def traces() -> Dashboard:
    """The dashboard."""
    built = page(
        "opta-traces",
        "opta_router: Traces",
        "Requests one by one. A row leads to its trace.",
        variables.traces(),
        variables.metrics(),
        variables.lane(),
        variables.model(),
        variables.slower_than(),
    )
    for add in (_slow, _by_rule_and_client, _stages, _remarkable):
        built = add(built)
    return built


def _slow(built: Dashboard) -> Dashboard:
    return built.with_panel(
        rows(
            "Slowest requests",
            "Requests that took longer than the variable above says, the longest first.",
            f"{NO_TRACE}; or none was that slow",
            table("duration > $slower_than"),
        )
    )


def _by_rule_and_client(built: Dashboard) -> Dashboard:
    client = "by (span.opta.client)"
    built = built.with_row(row("By rule and client"))
    built = built.with_panel(
        graph(
            "Rules that chose the lane",
            "Requests a second by the rule that decided, as X-Opta-Route says it.",
            NO_TRACE,
            traceql(f"{requests()} | rate() by (span.opta.lane.reason)"),
            unit="reqps",
            span=QUARTER,
            stacked=True,
        )
    )
    built = built.with_panel(
        graph(
            "Requests",
            "Requests a second by the client whose key they had.",
            NO_TRACE,
            traceql(f"{requests()} | rate() {client}"),
            unit="reqps",
            span=QUARTER,
        )
    )
    built = built.with_panel(
        graph(
            "Time to first token, p95",
            "By client.",
            NO_TRACE,
            traceql(f"{requests()} | quantile_over_time(span.opta.ttft_ms, 0.95) {client}"),
            unit="ms",
            span=QUARTER,
        )
    )
    return built.with_panel(
        graph(
            "Output tokens",
            "Tokens that each client got, in each step of the graph.",
            NO_TRACE,
            traceql(f"{requests()} | sum_over_time(span.gen_ai.usage.output_tokens) {client}"),
            span=QUARTER,
        )
    )


def _stages(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Stages"))
    for title, description, query in (
        (
            "Wait in the queue, by lane",
            "Median and p95.",
            f"{requests()} | quantile_over_time(span.opta.queue_ms, {_QUANTILES}) by (span.opta.lane)",
        ),
        (
            "Time to first token, by rule",
            "Median, by the rule that chose the lane.",
            f"{requests()} | quantile_over_time(span.opta.ttft_ms, 0.5) by (span.opta.lane.reason)",
        ),
    ):
        built = built.with_panel(graph(title, description, NO_TRACE, traceql(query), unit="ms", span=THIRD))
    return built.with_panel(
        graph(
            "Queue and decode",
            "Duration of the stages of all requests, median and p95.",
            NO_TRACE,
            traceql(f"{spans(_stage('opta.queue'))} | quantile_over_time(duration, {_QUANTILES}) by (name)"),
            traceql(f"{spans(_stage('opta.decode'))} | quantile_over_time(duration, {_QUANTILES}) by (name)"),
            unit="s",
            span=THIRD,
        )
    )


def _remarkable(built: Dashboard) -> Dashboard:
    acceptance = "span.opta.spec.acceptance_ratio"
    built = built.with_row(row("Remarkable requests"))
    for title, description, why_empty, query in (
        (
            "Failed",
            "Requests that ended with an error of ours.",
            "No request failed in this time, or traces are not sent",
            table("status = error", also=("span.error.type",)),
        ),
        (
            "Resumed",
            "Requests whose engine died, and that another one went on with.",
            "No request was resumed in this time, or traces are not sent",
            table("span.opta.resumed > 0", also=("span.opta.resumed",)),
        ),
        (
            "Low acceptance",
            f"Requests of whose compared draft tokens fewer than {FLOOR:.0%} were taken.",
            "No request had a low acceptance in this time, or traces are not sent",
            table(
                f"{acceptance} < {FLOOR}",
                also=(acceptance, "span.opta.spec.draft.model", "span.opta.spec.draft.proposed_tokens"),
            ),
        ),
        (
            "Moved to the throughput lane",
            "Answers of auto requests that outlived demote_after_tokens.",
            "No answer was moved in this time, or traces are not sent",
            table("span.opta.demoted = true", also=("span.opta.demoted.emitted_tokens",)),
        ),
    ):
        built = built.with_panel(rows(title, description, why_empty, query, span=HALF))
    return built


def _stage(name: str) -> str:
    return f'name = "{name}"'
