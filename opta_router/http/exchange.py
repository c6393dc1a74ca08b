"""One HTTP exchange over ASGI: headers in, at most one response out, and the client's leaving noticed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from opta_router.errors import InvalidRequest, UnsupportedMediaType
from opta_router.http.request_id import MAX_REQUEST_ID_CHARS, can_be_echoed, given_request_id, request_id_of
from opta_router.server import ON_DISCONNECT
from opta_router.server.refusal import Receive, Scope, Send

Header = tuple[bytes, bytes]


class Exchange:
    """Not more than a scope and two callables, with names for what is done with them."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.status: int | None = None
        # A header that comes twice counts once: the last one, as most servers have it.
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

    @property
    def request_id(self) -> str:
        """What the request is called in traces, the log and the answer."""
        return request_id_of(self.scope)

    def check_request_id(self) -> None:
        """Raises InvalidRequest if the client's is not one that can be echoed."""
        given = given_request_id(self.scope)
        if given is not None and not can_be_echoed(given):
            allowed = f"1 to {MAX_REQUEST_ID_CHARS} visible ASCII characters"
            raise InvalidRequest("invalid_request_id", f"X-Request-Id: allowed is {allowed}", param="X-Request-Id")

    def timeout_s(self) -> float | None:
        """How long the client would wait for its turn, from ``X-Request-Timeout``; None if it does not say.

        Raises:
            InvalidRequest: it is not a number of seconds.
        """
        given = self.headers.get("x-request-timeout")
        if given is None:
            return None
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            message = "X-Request-Timeout: allowed is a number of seconds above 0"
            raise InvalidRequest("invalid_timeout", message, param="X-Request-Timeout")
        return seconds

    async def json_body(self) -> bytes:
        """The whole body, which the middleware has read already.

        Raises:
            UnsupportedMediaType: it is not declared to be JSON.
        """
        declared = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if declared != "application/json":
            raise UnsupportedMediaType("the body must be declared as Content-Type: application/json")
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    def on_disconnect(self, left: Callable[[], None]) -> None:
        """Call ``left`` when the client goes before its answer is complete; at once if it has gone."""
        self.scope["extensions"][ON_DISCONNECT](left)

    async def start(self, status: int, content_type: bytes, headers: Iterable[Header] = ()) -> None:
        """Send status and headers."""
        self.status = status
        own = (b"content-type", content_type)
        await self._send({"type": "http.response.start", "status": status, "headers": [own, *headers]})

    async def write(self, data: bytes, *, more: bool) -> None:
        """Send a part of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def respond(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """Send a whole JSON response."""
        await self.start(status, b"application/json", [(b"content-length", b"%d" % len(body)), *headers])
        await self.write(body, more=False)
