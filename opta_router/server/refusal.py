"""An answer to a request that the application never sees."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

RenderError = Callable[[int, str, str], bytes]
"""`(status, code, message)` to a JSON body in the shape of the dialect that the path belongs to."""


def render_plain_error(status: int, code: str, message: str) -> bytes:
    """The shape for paths of no dialect."""
    return json.dumps({"error": {"code": code, "message": message, "status": status}}).encode()


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    close: bool = False,
) -> None:
    """Answer with `status` and a JSON `body`; `close` says (over HTTP/1.x) that no further request will be read."""
    sent = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    if close and scope.get("http_version", "").startswith("1"):
        sent.append((b"connection", b"close"))
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": sent})
    await send({"type": f"{kind}.body", "body": body})


def header_values(scope: Scope, name: bytes) -> list[str]:
    """All values of a header (its name in lower case), stripped."""
    return [value.decode("latin-1").strip() for found, value in scope["headers"] if found.lower() == name]
