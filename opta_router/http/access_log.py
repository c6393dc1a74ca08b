"""One line for each HTTP exchange, where ``telemetry.access_log`` asks for it."""

from __future__ import annotations

import logging
import time
from typing import Any

from opta_router.server.refusal import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("opta_router.access")


class AccessLog:
    """ASGI middleware, right behind the one that names requests. Query and body are never in a line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and say what it answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s = time.monotonic()
        status: int | None = None
        sent_bytes = 0
        routing: dict[str, str] = {}

        async def send_seen(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                routing.update(_routing(message))
            elif message["type"] == "http.response.body":
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_seen)
        finally:
            address = (scope.get("client") or (None,))[0]
            fields: dict[str, Any] = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round((time.monotonic() - begun_s) * 1000, 2),
                "sent_bytes": sent_bytes,
                "client": address,
                **routing,
            }
            values = (fields["method"], ascii(fields["path"])[1:-1], status, fields["duration_ms"], sent_bytes, address)
            log.info("%s %s: %s in %s ms, %s bytes to %s", *values, extra={"fields": fields})


def _routing(start: Message) -> dict[str, str]:
    names = {b"x-opta-lane": "lane", b"x-opta-route": "route"}
    return {names[name]: value.decode("latin-1") for name, value in start.get("headers", ()) if name in names}
