"""Everything that is recorded, in one hand: traces and metrics, started together and ended together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from threading import Thread

from opta_router.telemetry.metered import MeteredTrace
from opta_router.telemetry.metrics import Metrics, start_metrics
from opta_router.telemetry.resource import SHUTDOWN_S
from opta_router.telemetry.setup import is_disabled, start_tracing
from opta_router.telemetry.tally import Tally
from opta_router.telemetry.tracing import HttpRequest, RequestTrace, Tracing
from policies.schema import Config


class Recorder:
    """What the endpoints tell their requests to.

    Args:
        tracing: where spans go.
        metrics: where numbers go.
        dropped_lines: how much of the log was lost.
        counts: whether requests are counted; otherwise a request costs no more than its span.
    """

    def __init__(
        self, tracing: Tracing, metrics: Metrics, dropped_lines: Callable[[], int], *, counts: bool = True
    ) -> None:
        self.tracing = tracing
        self.metrics = metrics
        self.counts = counts
        self._dropped_lines = dropped_lines
        self._closing: list[Thread] = []
        self._deadline_s = 0.0
        metrics.observe.of_telemetry(self.dropped)

    def request(self, http: HttpRequest) -> RequestTrace:
        """A new request; what must come of it is as for :meth:`Tracing.request`."""
        trace = self.tracing.request(http)
        return MeteredTrace(self.metrics.tally, trace) if self.counts else trace

    def dropped(self) -> dict[str, int]:
        """What was recorded and will never arrive, by signal, since the start."""
        return {
            "traces": self.tracing.dropped_traces,
            "metrics": self.metrics.dropped_points,
            "logs": self._dropped_lines(),
        }

    def close(self) -> None:
        """Begin to send what is left, side by side, for each may take all the time that an exit has. Does not wait."""
        if self._closing:
            return
        self._deadline_s = time.monotonic() + SHUTDOWN_S
        for signal, shutdown in (("metrics", self.metrics.shutdown), ("traces", self.tracing.shutdown)):
            self._closing.append(Thread(target=shutdown, name=f"opta-{signal}-closing", daemon=True))
        for thread in self._closing:
            thread.start()

    def shutdown(self) -> None:
        """:meth:`close`, and wait until :data:`SHUTDOWN_S` after it at most; what is not sent then is given up."""
        self.close()
        for thread in self._closing:
            thread.join(max(0.0, self._deadline_s - time.monotonic()))


def start_recorder(
    config: Config, dropped_lines: Callable[[], int] = lambda: 0, environ: Mapping[str, str] = os.environ
) -> Recorder:
    """Telemetry as configured, and as OpenTelemetry's environment variables say.

    Raises:
        ConfigError: the configured endpoint is not a URL.
    """
    tally = Tally(model.name for model in config.models)
    tracing = start_tracing(config.telemetry, environ)
    metrics = start_metrics(config.telemetry, tally, environ)
    return Recorder(tracing, metrics, dropped_lines, counts=not is_disabled(environ))
