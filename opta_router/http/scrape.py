"""The metrics, for whoever scrapes them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from opta_router.service import service_of
from opta_router.telemetry.metrics import EXPOSITION_TYPE


async def metrics(request: Request) -> Response:
    """``GET /metrics``, in Prometheus' text format whatever is accepted: every scraper reads it."""
    return Response(service_of(request.scope).metrics.exposition(), headers={"content-type": EXPOSITION_TYPE})
