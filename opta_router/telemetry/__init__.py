"""One trace for each request, sent over OTLP if there is an endpoint. :func:`start_tracing` is the way in."""

from opta_router.telemetry.setup import start_tracing
from opta_router.telemetry.tracing import NO_TRACE, RequestTrace, Tracing

__all__ = ["NO_TRACE", "RequestTrace", "Tracing", "start_tracing"]
