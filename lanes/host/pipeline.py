"""Steps that were started on the device and not yet waited for.

A device works through what it is given in order. So the next step can be built and handed over while the one before
still runs, whichever lane it is of. A step's cost is the time that the device thread spends on it: building it, and
waiting for its end. These add up to that thread's time, and where the device is the slower of the two, as with a large
model on a GPU, the waiting is the time that the device takes longer because of this step.

Building takes its time, too: 12 ms for a batch of 32 on an H200, and on a CPU, where MLX hands over no more than a few
operations ahead, nearly all of a step. What a person waits for is not held up by that (:meth:`Pipeline.may_start`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

from lanes.engines.base import Emission, Engine
from lanes.wire import Lane

SMOOTHING: Final = 0.2
"""Weight of the newest step in the means of building and waiting."""


class Step(NamedTuple):
    """One step under way."""

    lane: Lane
    model: str
    engine: Engine
    limit_s: float | None
    built_s: float
    expected_s: float


class Pipeline:
    """Oldest step first. ``now_s`` is ``time.perf_counter``, or one like it."""

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._now_s = now_s
        self._steps: deque[Step] = deque()
        self._build_s: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()
        self._wait_s: WeakKeyDictionary[Engine, float] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._steps)

    def may_start(self, engine: Engine, limit_s: float | None) -> bool:
        """Whether ``engine`` may start a step now; else the one under way must be waited for first.

        Nobody runs ahead while somebody else waits: whoever comes would then wait for two steps. And a result that its
        engine needs for the next step is not held up by building another's step, if that takes longer than the result.
        """
        if not self._steps:
            return True
        newest = self._steps[-1].engine
        if any(step.engine is engine for step in self._steps):
            return engine.runs_ahead and limit_s is None
        return newest.runs_ahead or self._wait_s.get(newest, math.inf) >= self._build_s.get(engine, 0.0)

    def start(
        self, lane: Lane, model: str, engine: Engine, *, limit_s: float | None, expected_s: float
    ) -> list[Emission]:
        """Start a step that should take ``expected_s`` on the device.

        What :meth:`lanes.engines.base.Engine.step` raises comes through, and nothing is under way.
        """
        started_s = self._now_s()
        emissions = engine.step(limit_s)
        built_s = self._now_s() - started_s
        _learn(self._build_s, engine, built_s)
        self._steps.append(Step(lane, model, engine, limit_s, built_s, expected_s))
        return emissions

    def oldest(self) -> Step:
        """The step that :meth:`finish` waits for."""
        return self._steps[0]

    def finish(self) -> tuple[list[Emission], float]:
        """Wait for the oldest step: what it brought, and what it cost in seconds.

        What :meth:`lanes.engines.base.Engine.finish` raises comes through; the step is over all the same.
        """
        step = self._steps.popleft()
        waits_s = self._now_s()
        emissions = step.engine.finish(waits_s - step.built_s)
        waited_s = self._now_s() - waits_s
        if not self._steps:  # else the device has been given more meanwhile
            _learn(self._wait_s, step.engine, waited_s)
        return emissions, step.built_s + waited_s

    def drop(self, engine: Engine) -> None:
        """Forget the steps of an engine that was closed."""
        self._steps = deque(step for step in self._steps if step.engine is not engine)


def _learn(mean_s: WeakKeyDictionary[Engine, float], engine: Engine, seconds: float) -> None:
    known_s = mean_s.get(engine, seconds)
    mean_s[engine] = known_s + SMOOTHING * (seconds - known_s)
