"""One trace for each request, and metrics of all of them. :func:`opta_router.telemetry.recorder.start_recorder` starts
both; :func:`start_tracing` is for traces alone.
"""

from opta_router.telemetry.setup import start_tracing
from opta_router.telemetry.tracing import NO_TRACE, HttpRequest, RequestTrace, Tracing

__all__ = ["NO_TRACE", "HttpRequest", "RequestTrace", "Tracing", "start_tracing"]
