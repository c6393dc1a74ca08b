"""Which requests are traced. Pure, but for the draw."""

from __future__ import annotations

import random
from collections.abc import Callable

from opentelemetry.trace import SpanContext

from policies.schema import TelemetryConfig

BURST_S = 4.0
"""What was left over in so many seconds may be used at once: agents come in swarms."""


class Sampling:
    """``sample_ratio`` decides, or a client's own flag if that is trusted; then the bound on traces a second.

    The draw is afresh: a client that picks its trace ids must not pick what is kept.

    Args:
        config: the configuration.
        now_s: a monotonic clock.
    """

    def __init__(self, config: TelemetryConfig, now_s: Callable[[], float]) -> None:
        self._ratio = config.sample_ratio
        self._trusted = config.trust_client_sampling
        self._now_s = now_s
        self._rate = config.max_traces_per_s
        self._most = max(1.0, self._rate * BURST_S) if self._rate else 0.0
        self._tokens = self._most
        self._filled_s = now_s()
        self.beyond_rate = 0

    def wants(self, parent: SpanContext | None) -> bool:
        """Whether the request is to be traced. Those that only the rate keeps from it are counted."""
        if parent is not None and self._trusted:
            wanted = parent.trace_flags.sampled
        else:
            wanted = self._ratio >= 1 or random.random() < self._ratio  # noqa: S311 - nothing is secret here
        if not wanted:
            return False
        now_s = self._now_s()
        self._tokens = min(self._most, self._tokens + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        if self._tokens < 1:
            self.beyond_rate += 1
            return False
        self._tokens -= 1
        return True
