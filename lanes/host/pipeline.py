"""Steps that were started on the device and not yet waited for.

A device works through what it is given in order. So the next step can be built and handed over while the one before
still runs, whichever lane it is of, and the device is never without work in between. A step's time on the device is
from its own start, or the end of the step before it if that is later, to its end: these add up to the time in which
the device was given work, and each part of it is one lane's.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from lanes.engines.base import Emission, Engine
from lanes.wire import Lane


class Step(NamedTuple):
    """One step under way."""

    lane: Lane
    model: str
    engine: Engine
    started_s: float
    expected_s: float


class Pipeline:
    """Oldest step first. ``now_s`` is ``time.perf_counter``, or one like it."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._steps: deque[Step] = deque()
        self._free_since_s = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    def may_start(self, engine: Engine, limit_s: float | None) -> bool:
        """Whether ``engine`` may start a step now; else it must be waited for first.

        Nobody runs ahead while somebody else waits: whoever comes would then wait for two steps.
        """
        under_way = any(step.engine is engine for step in self._steps)
        return not under_way or (engine.runs_ahead and limit_s is None)

    def start(
        self, lane: Lane, model: str, engine: Engine, *, limit_s: float | None, expected_s: float
    ) -> list[Emission]:
        """Start a step that should take ``expected_s`` on the device.

        What :meth:`lanes.engines.base.Engine.step` raises comes through, and nothing is under way.
        """
        started_s = self._now_s()
        emissions = engine.step(limit_s)
        self._steps.append(Step(lane, model, engine, started_s, expected_s))
        return emissions

    def oldest(self) -> Step:
        """The step that :meth:`finish` waits for."""
        return self._steps[0]

    def finish(self) -> tuple[list[Emission], float]:
        """Wait for the oldest step: what it brought, and its seconds on the device.

        What :meth:`lanes.engines.base.Engine.finish` raises comes through; the step is over all the same.
        """
        step = self._steps.popleft()
        since_s = max(step.started_s, self._free_since_s)
        try:
            emissions = step.engine.finish(since_s)
        finally:
            self._free_since_s = self._now_s()
        return emissions, self._free_since_s - since_s

    def drop(self, engine: Engine) -> None:
        """Forget the steps of an engine that was closed."""
        self._steps = deque(step for step in self._steps if step.engine is not engine)
