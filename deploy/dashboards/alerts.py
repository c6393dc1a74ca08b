"""What calls an operator. One list, for a Prometheus and for Grafana.

Each alert is a figure and a bound, so that the figure alone can be looked at while nothing is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from deploy.dashboards.lanes import QUEUE
from deploy.dashboards.promql import growth, per_second, quantile, share
from deploy.dashboards.speculation import FLOOR, PAIR
from deploy.dashboards.variables import METRICS_UID

GROUP: Final = "opta_router"
MIN_COMPARED_TOKENS: Final = 500
"""Fewer draft tokens in a quarter of an hour say nothing about a pair."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """``figure`` beyond ``bound`` for ``lasting``. ``uid`` stays the same for ever: Grafana knows the alert by it."""

    name: str
    uid: str
    figure: str
    beyond: Literal[">", "<"]
    bound: float
    lasting: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    what_to_do: str

    @property
    def condition(self) -> str:
        """The expression that has a sample if and only if the alert is due."""
        return f"({self.figure}) {self.beyond} {self.bound:g}"


def _waiting(lane: str, bound_s: float) -> Alert:
    return Alert(
        name=f"OptaQueueWait{lane.title()}",
        uid=f"opta-queue-wait-{lane}",
        figure=quantile(0.95, QUEUE, f'lane="{lane}"', "lane", "5m"),
        beyond=">",
        bound=bound_s,
        lasting="5m",
        severity="warning",
        summary=f"Of the requests of the {lane} lane, 5 % wait longer than {bound_s:g} s for a slot",
        what_to_do="See who waits (dashboard Lanes; Traces by client). Raise the lane's max_active or its weight, give "
        "clients a max_active, or let the lane spill.",
    )


def alerts() -> tuple[Alert, ...]:
    """All of them."""
    turned_away = per_second("opta_lane_rejections_total", "", "lane", "5m")
    admitted = per_second(f"{QUEUE}_count", "", "lane", "5m")
    accepted, rejected = (
        f"sum by ({PAIR}) (increase(lmx_spec_draft_{fate}_total[15m]))" for fate in ("accepted", "rejected")
    )
    return (
        _waiting("interactive", 2),
        _waiting("throughput", 120),
        Alert(
            name="OptaLowAcceptance",
            uid="opta-low-acceptance",
            figure=f"({accepted}) / (({accepted} + {rejected}) > {MIN_COMPARED_TOKENS})",
            beyond="<",
            bound=FLOOR,
            lasting="10m",
            severity="warning",
            summary="Draft {{ $labels.draft_model }} guesses {{ $labels.model }} badly: it costs more than it gives",
            what_to_do="See dashboard Speculation. Another draft model, a shorter max_draft_tokens, or deny the pair.",
        ),
        Alert(
            name="OptaSpeculationOff",
            uid="opta-speculation-off",
            figure=f"max by ({PAIR}) (opta_spec_low_acceptance)",
            beyond=">",
            bound=0,
            lasting="5m",
            severity="warning",
            summary="{{ $labels.model }} does not speculate: too little of {{ $labels.draft_model }} was accepted",
            what_to_do="GET /admin/models says when it is retried. If it stays so, take another draft model.",
        ),
        Alert(
            name="OptaHostRestarted",
            uid="opta-host-restarted",
            figure=growth("opta_host_restarts_total", window="15m"),
            beyond=">",
            bound=0,
            lasting="0s",
            severity="warning",
            summary="An engine died or hung, and was replaced",
            what_to_do="GET /admin/status says what it died of. Its requests were resumed.",
        ),
        Alert(
            name="OptaHostCrashLoop",
            uid="opta-host-crash-loop",
            figure=growth("opta_host_restarts_total", window="15m"),
            beyond=">",
            bound=3,
            lasting="0s",
            severity="critical",
            summary="Engines die one after the other",
            what_to_do="GET /admin/status and the router's log. A model that kills its hosts is left out by itself.",
        ),
        Alert(
            name="OptaShedding",
            uid="opta-shedding",
            figure=share(turned_away, f"{turned_away} + ({admitted} or 0 * {turned_away})"),
            beyond=">",
            bound=0.05,
            lasting="5m",
            severity="warning",
            summary="The {{ $labels.lane }} lane turns away more than one request in twenty",
            what_to_do="The codes are on dashboard Lanes. queue_full and deadline: too much work for the lane; "
            "draining and engine_unavailable: see Hosts and models.",
        ),
        Alert(
            name="OptaTelemetryLost",
            uid="opta-telemetry-lost",
            figure=growth("opta_telemetry_dropped_total", window="15m"),
            beyond=">",
            bound=0,
            lasting="5m",
            severity="info",
            summary="Spans, metrics or log lines are lost",
            what_to_do="The collector is down, slow, or refuses them; requests are not affected.",
        ),
        Alert(
            name="OptaSilent",
            uid="opta-silent",
            figure="count(opta_lane_weight) or vector(0)",
            beyond="<",
            bound=1,
            lasting="5m",
            severity="critical",
            summary="No router has sent a metric for five minutes",
            what_to_do="Is the service up (GET /readyz), and the collector, or the scrape?",
        ),
    )


def prometheus_rules() -> dict[str, Any]:
    """A rule file for a Prometheus that has an Alertmanager."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.condition,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": alert.what_to_do},
        }
        for alert in alerts()
    ]
    return {"groups": [{"name": GROUP, "rules": rules}]}


def grafana_rules() -> dict[str, Any]:
    """The same alerts, evaluated by Grafana."""
    group = {
        "orgId": 1,
        "name": GROUP,
        "folder": "opta_router",
        "interval": "1m",
        "rules": [_grafana_rule(alert) for alert in alerts()],
    }
    return {"apiVersion": 1, "groups": [group]}


def _grafana_rule(alert: Alert) -> dict[str, Any]:
    evaluator = {"type": "gt" if alert.beyond == ">" else "lt", "params": [alert.bound]}
    figure = {"refId": "A", "expr": alert.figure, "instant": True, "range": False}
    bound = {"refId": "B", "type": "threshold", "expression": "A", "conditions": [{"evaluator": evaluator}]}
    return {
        "uid": alert.uid,
        "title": alert.name,
        "condition": "B",
        "data": [
            {
                "refId": "A",
                "datasourceUid": METRICS_UID,
                "relativeTimeRange": {"from": 900, "to": 0},
                "model": figure,
            },
            {"refId": "B", "datasourceUid": "__expr__", "relativeTimeRange": {"from": 0, "to": 0}, "model": bound},
        ],
        # No sample is what an idle service has.
        "noDataState": "OK",
        "execErrState": "Error",
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.what_to_do},
    }
