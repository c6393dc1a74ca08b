"""The live page: ``/``, its files under ``/live/``, and its event stream ``/live/events``."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final, cast

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opta_router.dialects.framing import CONTENT_TYPE
from opta_router.errors import MethodNotAllowed, NotFound
from opta_router.http.auth import authorize_admin
from opta_router.http.exchange import Exchange
from opta_router.http.live_view import snapshot
from opta_router.live_feed import Feed
from opta_router.server.refusal import Receive, Scope, Send
from opta_router.service import Service, service_of

PAGE: Final = "index.html"
MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

# Nothing inline, nothing from elsewhere, and nobody may put the page into a frame: it can change weights.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS: Final = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class _File(msgspec.Struct, frozen=True):
    body: bytes
    media_type: str
    etag: str


def routes() -> list[Route]:
    """The page and what it is fed by. The page itself is no secret, so it needs no key; its events do."""
    files = _files()

    async def page(request: Request) -> Response:
        return _answer(request, files[PAGE])

    async def asset(request: Request) -> Response:
        file = files.get(request.path_params["name"])  # a name that we have, and never a path
        if file is None:
            raise NotFound("there is nothing at this path")
        return _answer(request, file)

    return [
        Route("/", page, methods=["GET"]),
        Route("/live/events", EventStream()),
        Route("/live/{name}", asset, methods=["GET"]),
    ]


def feed_of(service: Service) -> Feed:
    """The event stream's source."""
    return Feed(lambda: msgspec.json.encode(snapshot(service)), service.journal, lambda: service.dispatcher.stopping)


class EventStream:
    """``GET /live/events``, as an ASGI application: it ends when its client leaves, or the router stops."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events. Raises RouterError before the first."""
        exchange = Exchange(scope, receive, send)
        if scope["method"] != "GET":
            raise MethodNotAllowed("/live/events takes GET", allowed="GET")
        authorize_admin(service_of(scope).config.server, exchange.headers)
        feed = cast(Feed, scope["app"].state.feed)
        with feed.watched() as viewer, anyio.CancelScope() as watching:
            exchange.on_disconnect(watching.cancel)
            await exchange.start(200, CONTENT_TYPE, [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")])
            while (data := await viewer.events()) is not None:
                await exchange.write(data, more=True)
            await exchange.write(b"", more=False)


def _files() -> dict[str, _File]:
    found: dict[str, _File] = {}
    for file in (resources.files("opta_router") / "live").iterdir():
        media_type = MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            body = file.read_bytes()
            found[file.name] = _File(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:20]}"')
    return found


def _answer(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)
