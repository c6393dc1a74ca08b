"""Grafana's data sources: metrics that lead to traces by exemplars, and traces that lead to metrics."""

from __future__ import annotations

from typing import Any

from deploy.dashboards.lanes import QUEUE
from deploy.dashboards.promql import per_second, quantile
from deploy.dashboards.variables import METRICS_UID, TRACES_UID
from opta_router.telemetry.resource import EXPORT_INTERVAL_S

SCRAPE_INTERVAL = f"{EXPORT_INTERVAL_S:g}s"
"""The time between two samples, by which Grafana chooses windows."""


def datasources(*, prometheus: str, tempo: str) -> dict[str, Any]:
    """The provisioning file, with the URLs as Grafana reaches them."""
    return {"apiVersion": 1, "prune": True, "datasources": [_metrics(prometheus), _traces(tempo)]}


def trace_queries() -> dict[str, str]:
    """Queries beside a span, by name. ``$__tags`` becomes the span's own labels."""
    return {
        "Requests a second in its lane": per_second("opta_router_requests_total", "$__tags", "lane", "5m"),
        "Wait in its lane's queue, p95": quantile(0.95, QUEUE, "$__tags", "lane", "5m"),
        "Others waiting": "sum by (lane) (opta_lane_queue_depth{$__tags})",
    }


def _metrics(url: str) -> dict[str, Any]:
    return {
        "name": "opta_router metrics",
        "uid": METRICS_UID,
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "jsonData": {
            "httpMethod": "POST",
            "timeInterval": SCRAPE_INTERVAL,
            "exemplarTraceIdDestinations": [{"name": "trace_id", "datasourceUid": TRACES_UID}],
        },
    }


def _traces(url: str) -> dict[str, Any]:
    queries = [{"name": name, "query": query} for name, query in trace_queries().items()]
    return {
        "name": "opta_router traces",
        "uid": TRACES_UID,
        "type": "tempo",
        "access": "proxy",
        "url": url,
        "jsonData": {
            "nodeGraph": {"enabled": True},
            "tracesToMetrics": {
                "datasourceUid": METRICS_UID,
                # Around the span, so that a short one has samples, too.
                "spanStartTimeShift": "-5m",
                "spanEndTimeShift": "5m",
                "tags": [{"key": "opta.lane", "value": "lane"}],
                "queries": queries,
            },
        },
    }
