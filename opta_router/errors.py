"""What can end a request badly, by whose fault. Each error has a stable ``code``.

Only the dialects know HTTP statuses and bodies: they look at the class. Nothing of a prompt or an answer is ever in
a message; what a message repeats of a request is its field names, numbers and names of models.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

InvalidCode: TypeAlias = Literal[
    "invalid_json",
    "invalid_type",
    "invalid_value",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_parameter",
    "unsupported_value",
    "context_length_exceeded",
    "invalid_prompt",
    "invalid_request_id",
    "invalid_timeout",
]


class RouterError(Exception):
    """Base of all errors that a client is told about. ``param`` names the request's field at fault, if one is."""

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


# the caller's


class CallerError(RouterError):
    """The request is wrong; the same request will be wrong again."""

    code = "invalid_request"


class InvalidRequest(CallerError):
    """The body cannot be used."""

    def __init__(self, code: InvalidCode, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.code = code


class InvalidKey(CallerError):
    """A key is required, and the request has none or a wrong one."""

    code = "invalid_api_key"


class NotFound(CallerError):
    """No such path."""

    code = "not_found"


class ModelNotFound(CallerError):
    """No model, alias or preset of that name is configured."""

    code = "model_not_found"


class PresetNotFound(CallerError):
    """No preset of that name is configured."""

    code = "preset_not_found"


class LaneNotFound(NotFound):
    """There is no such lane."""

    code = "lane_not_found"


class AdminForbidden(CallerError):
    """Nobody administers this router over the network: no admin key is configured."""

    code = "admin_key_not_configured"


class NoConfigFile(CallerError):
    """The router was started without a file, so there is nothing to read again."""

    code = "no_config_file"


class BenchmarkRunning(CallerError):
    """One benchmark runs already."""

    code = "benchmark_running"


class MethodNotAllowed(CallerError):
    """The path exists, for other methods. ``allowed`` are those."""

    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class UnsupportedMediaType(CallerError):
    """The body is not declared to be JSON."""

    code = "unsupported_media_type"


# not now


class NotNow(RouterError):
    """The request may be right; try it again in ``retry_after_s`` seconds, 1 to 60."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(NotNow):
    """The lane's queue is full."""

    code = "queue_full"


class DeadlineExceeded(NotNow):
    """The request's turn did not come, or would not come, within the time that its lane or its client allows."""

    code = "deadline"


class Draining(NotNow):
    """The router lets its work run out and takes none: it is about to stop, or an operator wants it so."""

    code = "draining"


class Shedding(NotNow):
    """The device's memory is nearly full: until running requests have ended, no more are taken."""

    code = "shedding"


class TooManyViewers(NotNow):
    """As many watch the router as may."""

    code = "too_many_viewers"


class EngineUnavailable(NotNow):
    """No engine takes work: it is starting, restarting, or gone."""

    code = "engine_unavailable"


class EngineDied(NotNow):
    """The engine went away while it answered, and no other came up."""

    code = "engine_died"


class ModelUnavailable(NotNow):
    """The model is configured, and could not be loaded."""

    code = "model_unavailable"


# ours


class Fault(RouterError):
    """Our mistake."""

    code = "internal_error"


class EngineFault(Fault):
    """The engine failed this request."""

    code = "engine_error"


class PoisonRequest(Fault):
    """Engine after engine died of the request. It is not tried again, here or by a client."""

    code = "poison_request"
