"""OpenTelemetry's loggers, held to a line a minute together: a collector that is down must not fill the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

INTERVAL_S: Final = 60.0

# A logger's filter sees only what is logged on that very logger, so those that speak about an export are listed.
LOGGERS: Final = (
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.common._internal",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.metrics._internal",
    "opentelemetry.sdk.metrics._internal.export",
    "opentelemetry.sdk.metrics._internal.instrument",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
    "opta_router.telemetry.export",
)


class OncePerInterval(logging.Filter):
    """Lets one record through in ``interval_s`` seconds, and has it say how many were held back before it."""

    def __init__(self, interval_s: float = INTERVAL_S, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._last_s: float | None = None
        self._held_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        with self._lock:
            now_s = self._now_s()
            if self._last_s is not None and now_s - self._last_s < self._interval_s:
                self._held_back += 1
                return False
            self._last_s = now_s
            held_back, self._held_back = self._held_back, 0
        if held_back:
            record.msg, record.args = f"{record.getMessage()} ({held_back} lines of telemetry held back)", ()
        return True


shared = OncePerInterval()
"""The one limit on all of them."""


def quieten() -> None:
    """Put the limit on every logger of :data:`LOGGERS`."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(shared)  # adding it twice is adding it once
