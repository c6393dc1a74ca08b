"""OpenAI's error bodies, and which HTTP status says what."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import msgspec

from opta_router import errors
from opta_router.errors import RouterError

# The nearest base class counts, so every error has a status and a type.
_STATUS: Final = MappingProxyType(
    {
        errors.RouterError: 500,
        errors.CallerError: 400,
        errors.InvalidKey: 401,
        errors.AdminForbidden: 403,
        errors.NotFound: 404,
        errors.ModelNotFound: 404,
        errors.PresetNotFound: 404,
        errors.MethodNotAllowed: 405,
        errors.NoConfigFile: 409,
        errors.BenchmarkRunning: 409,
        errors.UnsupportedMediaType: 415,
        errors.NotNow: 503,
        errors.QueueFull: 429,
        errors.Fault: 500,
    }
)
_TYPE_OF_STATUS: Final = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
)


class ErrorDetail(msgspec.Struct, frozen=True):
    """What OpenAI's clients read."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The whole body, or one in-band event."""

    error: ErrorDetail


class RenderedError(msgspec.Struct, frozen=True):
    """An error as HTTP sees it."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def status_of(error: RouterError) -> int:
    """The status that says it."""
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def render_error(error: RouterError) -> RenderedError:
    """Status, further headers and body."""
    status = status_of(error)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    match error:
        case errors.NotNow():
            headers = ((b"retry-after", b"%d" % error.retry_after_s),)
        case errors.PoisonRequest():  # the SDKs try a 500 again, and would kill the next engines
            headers = ((b"x-should-retry", b"false"),)
        case errors.InvalidKey():
            headers = ((b"www-authenticate", b"Bearer"),)
        case errors.MethodNotAllowed():
            headers = ((b"allow", error.allowed.encode("ascii")),)
    return RenderedError(status, headers, _body(status, error.code, error.message, error.param))


def render_refusal(status: int, code: str, message: str) -> bytes:
    """A refusal that middleware has decided on, in the same shape."""
    return _body(status, code, message, None)


def _body(status: int, code: str, message: str, param: str | None) -> bytes:
    kind = _TYPE_OF_STATUS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode(ErrorBody(ErrorDetail(message, kind, param, code)))
