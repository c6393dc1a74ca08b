"""``X-Request-Id``: on every answer, whoever gives it, the guards and the router's own endpoints included."""

from __future__ import annotations

from typing import Final

from opta_router import logs
from opta_router.identifiers import new_identifier
from opta_router.server.refusal import ASGIApp, Message, Receive, Scope, Send, header_values

MAX_REQUEST_ID_CHARS: Final = 128
_EXTENSION: Final = "opta.request_id"
_HEADER: Final = b"x-request-id"
_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class RequestId:
    """ASGI middleware, in front of all other: names the request, as its client does if that name can be echoed.

    Args:
        app: The application; it asks :func:`request_id_of`, and sends no such header of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and put the header on what it answers."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = given_request_id(scope)
        request_id = given if given is not None and can_be_echoed(given) else f"req-{new_identifier()}"
        scope["extensions"][_EXTENSION] = request_id
        logs.subject.set(logs.Subject(request_id))

        async def send_named(message: Message) -> None:
            if message["type"] in _STARTS:
                headers = [*message.get("headers", ()), (_HEADER, request_id.encode("ascii"))]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_named)


def request_id_of(scope: Scope) -> str:
    """What the request is called."""
    request_id: str = scope["extensions"][_EXTENSION]
    return request_id


def given_request_id(scope: Scope) -> str | None:
    """What its client calls it: of several headers the last, as most servers have it."""
    return next(reversed(header_values(scope, _HEADER)), None)


def can_be_echoed(text: str) -> bool:
    """Whether a header may hold it: 1 to 128 visible ASCII characters."""
    return 0 < len(text) <= MAX_REQUEST_ID_CHARS and all("!" <= character <= "~" for character in text)
