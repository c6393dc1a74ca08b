"""The metrics, for whoever scrapes them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from opta_router.service import service_of


async def metrics(request: Request) -> Response:
    """``GET /metrics``: OpenMetrics for who accepts it, else Prometheus' text format, whatever is accepted."""
    accept = request.headers.get("accept", "")
    text, content_type = service_of(request.scope).telemetry.metrics.exposition(accept)
    return Response(text, headers={"content-type": content_type})
