"""Whether the router is alive, and whether it can take work."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from opta_router.answer import ENGINE_RETRY_S
from opta_router.service import service_of


async def healthz(_request: Request) -> Response:
    """200 for as long as the event loop turns."""
    return _json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """200 if a request would be taken now, else 503 with the reasons."""
    reasons = service_of(request.scope).dispatcher.not_ready_reasons()
    if not reasons:
        return _json({"status": "ready"})
    body = {"status": "not ready", "reasons": reasons}
    return _json(body, 503, {"retry-after": str(ENGINE_RETRY_S)})


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")
