"""What an operator may see and change while the router runs. Every change is in the audit log."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opta_router.dialects import openai
from opta_router.dialects.body import decode
from opta_router.errors import LaneNotFound, RouterError, UnsupportedMediaType
from opta_router.http import admin_benchmark, admin_models
from opta_router.http.auth import authorize_admin
from opta_router.http.engine import engine_view
from opta_router.service import Service, service_of
from policies.errors import ConfigError, RestartRequired
from policies.reload import LANE_SETTINGS, Reload
from policies.schema import LaneName, plain

audit = logging.getLogger("opta_router.audit")

LANES: tuple[LaneName, ...] = get_args(LaneName)

Handler: TypeAlias = Callable[[Request, Service, str], Awaitable[Response]]
"""Takes the request, the service, and who asks, for the audit log."""


class LaneView(msgspec.Struct, frozen=True, kw_only=True):
    """One lane: its settings, named as in the file, and what goes on in it. Seconds and counts since the start.

    ``active`` are the requests that hold a slot, ``on_device`` the sequences that the host computes, ``device_s`` the
    device time that the lane's steps took. ``bounded_steps`` are those beside the other lane in use, of which
    ``late_steps`` took longer than ``max_step_ms``. What the host knows is as of a second ago.
    """

    weight: float
    max_active: int
    max_queue: int
    queue_timeout: float
    active: int
    on_device: int
    queued: int
    granted: int
    spilled: int
    demoted: int
    rejected: Mapping[str, int]
    device_s: float
    bounded_steps: int
    late_steps: int


def routes() -> list[Route]:
    """Everything under ``/admin``."""
    return [
        _route("/admin/status", "GET", _status),
        _route("/admin/lanes", "GET", _lanes),
        _route("/admin/lanes/{lane}", "PATCH", _set_lane),
        _route("/admin/models", "GET", admin_models.models),
        _route("/admin/models/{name:path}/load", "POST", admin_models.load),
        _route("/admin/models/{name:path}/unload", "POST", admin_models.unload),
        _route("/admin/reload", "POST", _reload),
        _route("/admin/benchmark", "POST", admin_benchmark.benchmark),
        _route("/admin/drain", "POST", _drain),
        _route("/admin/drain", "DELETE", _undrain),
    ]


def _route(path: str, method: str, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        service = service_of(request.scope)
        address = request.client.host if request.client is not None else "unknown"
        try:
            proof = authorize_admin(service.config.server, request.headers)
        except RouterError as error:
            audit.warning("%s %s from %s: refused: %s", method, path, address, error.code)
            raise
        who = f"{proof}, from {address}"
        try:
            return await handler(request, service, who)
        except RouterError as error:
            audit.info("%s %s by %s: refused: %s", method, path, who, error.code)
            raise

    return Route(path, endpoint, methods=[method])


async def _status(_request: Request, service: Service, _who: str) -> Response:
    configuration = service.configuration
    refusal = configuration.last_refusal
    config = {
        "file": str(configuration.file) if configuration.file is not None else None,
        "loaded_at": _utc(configuration.loaded_at_s),
        "last_error": {"at": _utc(refusal.at_s), **_explained(refusal.error)} if refusal is not None else None,
    }
    return _json(
        {
            "engine": engine_view(service),
            "config": config,
            "lanes": lane_views(service),
            "models": admin_models.views(service),
            "telemetry": {"dropped": service.telemetry.dropped()},
        }
    )


async def _lanes(_request: Request, service: Service, _who: str) -> Response:
    return _json(lane_views(service))


async def _set_lane(request: Request, service: Service, who: str) -> Response:
    lane = request.path_params["lane"]
    if lane not in LANES:
        raise LaneNotFound(f"there is no lane {lane[:40]!a}; the lanes are {', '.join(LANES)}")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType("the body must be declared as Content-Type: application/json")
    settings = decode(await request.body(), dict[str, Any])
    try:
        result = service.configuration.set_lane(lane, settings)
    except ConfigError as error:
        audit.info("lane %s by %s: refused: %s", lane, who, error.code)
        return _refused(error, 409 if isinstance(error, RestartRequired) else 400)
    audit.info("lane %s: %s by %s: %s", lane, msgspec.json.encode(settings).decode(), who, _named(result))
    return _json(_lane_view(service, lane))


async def _reload(_request: Request, service: Service, who: str) -> Response:
    try:
        result = await service.configuration.reload()
    except ConfigError as error:
        audit.info("reload by %s: refused: %s", who, error.code)
        return _refused(error, 422)
    audit.info("reload by %s: %s", who, _named(result))
    return _json({"changed": result.changed, "needs_restart": result.needs_restart})


async def _drain(_request: Request, service: Service, who: str) -> Response:
    service.dispatcher.drain()
    audit.info("drain by %s", who)
    return _json(engine_view(service))


async def _undrain(_request: Request, service: Service, who: str) -> Response:
    service.dispatcher.undrain()
    audit.info("no longer drained, by %s", who)
    return _json(engine_view(service))


def lane_views(service: Service) -> dict[str, LaneView]:
    """Both lanes, now."""
    return {lane: _lane_view(service, lane) for lane in LANES}


def _lane_view(service: Service, lane: LaneName) -> LaneView:
    settings = plain(getattr(service.config.lanes, lane))
    reading, stats, host = service.lanes()[lane], service.dispatcher.stats()[lane], service.engine.stats
    return LaneView(
        **{name: settings[name] for name in LANE_SETTINGS},
        active=reading.active,
        on_device=host.lanes[lane].active if host is not None else 0,
        queued=reading.queued,
        granted=stats.granted,
        spilled=reading.spilled,
        demoted=stats.demoted,
        rejected=reading.rejected,
        device_s=round(reading.device_s, 3),
        bounded_steps=reading.bounded_steps,
        late_steps=reading.late_steps,
    )


def _named(result: Reload) -> str:
    return ", ".join(result.changed) or "nothing changes"


def _refused(error: ConfigError, status: int) -> Response:
    """An error of the usual shape, with every part of it by name."""
    body = msgspec.json.decode(openai.render_refusal(status, error.code, str(error)))
    detail = {**body["error"], "param": error.key_path, **_explained(error)}
    return _json({**body, "error": detail}, status)


def _explained(error: ConfigError) -> dict[str, Any]:
    return {
        "message": str(error),
        "problem": error.problem,
        "file": str(error.file) if error.file is not None else None,
        "line": error.line,
        "key_path": error.key_path,
        "found": error.found,
        "allowed": error.allowed,
        "suggestion": error.suggestion,
    }


def _utc(epoch_s: float) -> str:
    return datetime.datetime.fromtimestamp(epoch_s, datetime.UTC).isoformat(timespec="seconds")


def _json(body: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
