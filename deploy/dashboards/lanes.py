"""*Lanes*: whether they are healthy, who waits and why, and who gets the device."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards import variables
from deploy.dashboards.page import page
from deploy.dashboards.panels import (
    NO_REQUEST,
    NOT_REPORTING,
    SIXTH,
    THIRD,
    graph,
    heat,
    number,
    promql,
    row,
)
from deploy.dashboards.promql import GEN_AI, LANE, LANE_AND_MODEL, WINDOW, growth, per_second, quantile, share, spectrum

TTFT = "gen_ai_server_time_to_first_token_seconds"
TPOT = "gen_ai_server_time_per_output_token_seconds"
QUEUE = "opta_lane_queue_duration_seconds"
QUANTILES = (0.5, 0.95, 0.99)


def lanes() -> Dashboard:
    """The dashboard."""
    built = page(
        "opta-lanes",
        "opta_router: Lanes",
        "Load, waiting and latency of each lane, and its share of the device.",
        variables.metrics(),
        variables.lane(),
        variables.model(),
    )
    for add in (_now, _load, _latency, _shares):
        built = add(built)
    return built


def _now(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Now"))
    built = built.with_panel(
        number(
            "Waiting",
            "Requests in the lane's queue.",
            NOT_REPORTING,
            promql(f"sum by (lane) (opta_lane_queue_depth{{{LANE}}})", "{{lane}}"),
            steps=((None, "green"), (1, "yellow"), (32, "red")),
        )
    )
    built = built.with_panel(
        number(
            "Served",
            "Requests that have a slot.",
            NOT_REPORTING,
            promql(f"sum by (lane) (opta_lane_requests_active{{{LANE}}})", "{{lane}}"),
        )
    )
    built = built.with_panel(
        number(
            "First token, p95",
            "Time from the request to its first token, which 95 % of the last five minutes' requests kept below.",
            NO_REQUEST,
            promql(quantile(0.95, TTFT, GEN_AI, "opta_lane", "5m"), "{{opta_lane}}"),
            unit="s",
            span=SIXTH * 2,
        )
    )
    built = built.with_panel(
        number(
            "Turned away",
            "Requests that were answered 429 or 503 in the time shown.",
            NOT_REPORTING,
            promql(growth("opta_lane_rejections_total", LANE), now=True),
            steps=((None, "green"), (1, "orange")),
        )
    )
    return built.with_panel(
        number(
            "Device busy",
            "Device time that the lanes' steps took, of the time that went by.",
            NOT_REPORTING,
            promql(f"sum(rate(opta_lane_device_time_seconds_total{{{LANE}}}[1m]))"),
            unit="percentunit",
        )
    )


def _load(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Load"))
    built = built.with_panel(
        graph(
            "Requests",
            "Ended requests a second, by lane and outcome.",
            NO_REQUEST,
            promql(per_second("opta_router_requests_total", LANE_AND_MODEL, "lane, outcome"), "{{lane}} {{outcome}}"),
            unit="reqps",
            span=THIRD,
        )
    )
    built = built.with_panel(
        graph(
            "Output",
            "Tokens a second that went to clients.",
            NO_REQUEST,
            promql(
                per_second("opta_router_tokens_total", f'gen_ai_token_type="output", {LANE_AND_MODEL}', "lane"),
                "{{lane}}",
            ),
            span=THIRD,
            stacked=True,
        )
    )
    built = built.with_panel(
        graph(
            "How requests ended",
            "Ended requests a second, by why the answer ended, or by the error's code.",
            NO_REQUEST,
            promql(per_second("opta_router_requests_total", LANE_AND_MODEL, "reason"), "{{reason}}"),
            unit="reqps",
            span=THIRD,
            stacked=True,
        )
    )
    built = built.with_panel(
        graph(
            "Waiting and served",
            "Requests in the queue, and requests that have a slot.",
            NOT_REPORTING,
            promql(f"sum by (lane) (opta_lane_queue_depth{{{LANE}}})", "{{lane}} waiting"),
            promql(f"sum by (lane) (opta_lane_requests_active{{{LANE}}})", "{{lane}} served"),
        )
    )
    return built.with_panel(
        graph(
            "Turned away, and sent to the other lane",
            "Rejections a second by their code: queue_full, deadline, draining, …; and spills out of a full lane.",
            "Nobody was turned away since the router's start",
            promql(per_second("opta_lane_rejections_total", LANE, "lane, code"), "{{lane}} {{code}}"),
            promql(per_second("opta_lane_spills_total", LANE, "lane"), "{{lane}} spilled"),
            unit="reqps",
        )
    )


def _latency(built: Dashboard) -> Dashboard:
    built = built.with_row(row("Latency"))
    for title, description, histogram, labels, by in (
        ("Wait in the queue", "From arrival to a slot.", QUEUE, LANE, "lane"),
        ("Time to first token", "From arrival to the first token.", TTFT, GEN_AI, "opta_lane"),
        ("Time per output token", "After the first one, the mean of each request.", TPOT, GEN_AI, "opta_lane"),
    ):
        queries = [
            promql(quantile(q, histogram, labels, by), f"{{{{{by}}}}} p{q * 100:g}", exemplars=True) for q in QUANTILES
        ]
        built = built.with_panel(graph(title, description, NO_REQUEST, *queries, unit="s", span=THIRD))
    for title, histogram in (("Time to first token, $lane", TTFT), ("Time per output token, $lane", TPOT)):
        built = built.with_panel(
            heat(title, "How many requests took how long.", NO_REQUEST, spectrum(histogram, GEN_AI), "s")
        )
    return built


def _shares(built: Dashboard) -> Dashboard:
    device = per_second("opta_lane_device_time_seconds_total", LANE, "lane")
    device_of_both = f"sum(rate(opta_lane_device_time_seconds_total[{WINDOW}]))"
    weight = f"sum by (lane) (opta_lane_weight{{{LANE}}})"
    built = built.with_row(row("Fairness"))
    built = built.with_panel(
        graph(
            "Share of device time against weight",
            "Where both lanes have work, device time follows the weights; where one has none, the other gets it all.",
            "The device did nothing in this time, so there is nothing to share",
            promql(f"{device} / on () group_left () ({device_of_both} > 0)", "{{lane}} has"),
            promql(f"{weight} / on () group_left () sum(opta_lane_weight)", "{{lane}} is due"),
            unit="percentunit",
            span=THIRD,
            most=1,
        )
    )
    late = per_second("opta_lane_steps_bounded_total", f'late="true", {LANE}', "lane")
    all_steps = per_second("opta_lane_steps_bounded_total", LANE, "lane")
    built = built.with_panel(
        graph(
            "Steps longer than max_step_ms",
            "Of the throughput lane's steps while the interactive lane was in use: those somebody may have waited for.",
            "The lanes were not in use together in this time",
            promql(share(late, all_steps), "{{lane}}"),
            unit="percentunit",
            span=THIRD,
            most=1,
        )
    )
    return built.with_panel(
        graph(
            "Tokens for each second of the device",
            "What a lane makes of its device time.",
            "No lane had the device in this time",
            promql(
                share(
                    per_second("opta_router_tokens_total", f'gen_ai_token_type="output", {LANE}', "lane"),
                    device,
                ),
                "{{lane}}",
            ),
            span=THIRD,
        )
    )
