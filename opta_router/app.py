"""The ASGI application: routes, errors of one shape, and the guards in front."""

from __future__ import annotations

import logging
import time

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from opta_router.configuration import Configuration
from opta_router.dialects import openai
from opta_router.dispatch import Dispatcher
from opta_router.engine import Engine
from opta_router.errors import Fault, MethodNotAllowed, NotFound, RouterError
from opta_router.http import admin, health, inference, live, models, scrape
from opta_router.http.access_log import AccessLog
from opta_router.http.request_id import RequestId
from opta_router.journal import Journal
from opta_router.server import BodyLimit, HostGuard
from opta_router.server.refusal import ASGIApp
from opta_router.service import Service
from opta_router.telemetry.recorder import Recorder

log = logging.getLogger(__name__)


def build_app(configuration: Configuration, engine: Engine, dispatcher: Dispatcher, telemetry: Recorder) -> ASGIApp:
    """The application to serve. ``engine`` must be running, or start; until it is ready, requests are a 503."""
    app = Starlette(
        routes=_routes(),
        exception_handlers={RouterError: _router_error, HTTPException: _http_error, Exception: _fault},
    )
    service = Service(
        configuration=configuration,
        engine=engine,
        dispatcher=dispatcher,
        telemetry=telemetry,
        benchmarking=anyio.Lock(),
        journal=Journal(),
        started_s=int(time.time()),
    )
    telemetry.metrics.observe.of_lanes(service.lanes)
    telemetry.metrics.observe.of_engine(service.engine_reading)
    telemetry.metrics.observe.of_prompt_caches(lambda: engine.prompt_caches)
    telemetry.metrics.observe.of_configuration(service.configuration_reading)
    telemetry.metrics.observe.of_pairs(dispatcher.speculation.readings)
    app.state.service = service
    app.state.feed = live.feed_of(service)
    server = configuration.in_force.server  # what is fixed until a restart
    limited = BodyLimit(
        app,
        max_body_bytes=int(server.max_body),
        read_timeout_s=float(server.body_timeout),
        render_error=openai.render_refusal,
    )
    guarded = HostGuard(
        limited,
        bound_host=server.host,
        allowed_hosts=server.allowed_hosts,
        allowed_origins=server.allowed_origins,
        render_error=openai.render_refusal,
    )
    return RequestId(AccessLog(guarded) if configuration.in_force.telemetry.access_log else guarded)


def _routes() -> list[BaseRoute]:
    return [
        Route("/v1/chat/completions", inference.chat_completions()),
        Route("/v1/completions", inference.completions()),
        Route("/v1/models", models.list_models, methods=["GET"]),
        Route("/v1/models/{name:path}", models.get_model, methods=["GET"]),
        Route("/healthz", health.healthz, methods=["GET"]),
        Route("/readyz", health.readyz, methods=["GET"]),
        Route("/metrics", scrape.metrics, methods=["GET"]),
        *admin.routes(),
        *live.routes(),
    ]


async def _router_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RouterError):
        raise error
    return _rendered(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or not this method."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return _rendered(MethodNotAllowed(f"{request.url.path} takes {allowed}", allowed=allowed))
    return _rendered(NotFound("there is nothing at this path"))


async def _fault(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return _rendered(Fault("an internal error; the router's log says more"))


def _rendered(error: RouterError) -> Response:
    rendered = openai.render_error(error)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in rendered.headers}
    return Response(rendered.body, rendered.status, headers, "application/json")
