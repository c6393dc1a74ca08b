"""Whether a host still gets anywhere, judged by its device loop. Pure: beats and times go in, a verdict comes out.

Time counts only while the watchdog itself runs: if the whole machine slept, or this process was stopped with the host,
nobody is late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lanes.heartbeat import KINDS, LANES, Activity, Beat
from lanes.wire import Lane

TICK_S: Final = 0.0625
"""How often the router looks."""

MAX_TICK_S: Final = 1.0
"""What one look counts at most, however long ago the last one was."""

MIN_DEADLINE_S: Final = 5.0
TIMES_USUAL: Final = 10.0

UNMEASURED_S: Final[Mapping[Activity, float]] = MappingProxyType(
    {Activity.STARTING: 30.0, Activity.LOAD: 60.0, Activity.PREFILL: 30.0, Activity.DECODE: 30.0, Activity.IDLE: 5.0}
)
"""Deadlines while nothing is known of how long it takes. A load's is for the time between two signs of progress."""

SILENCE_S: Final = 30.0
"""How long the wire thread may say nothing while the device loop turns; it says something every second."""

SILENT_BEATS: Final = 8
"""What the loop may begin before anything of it must be heard: its report follows a step, and a step may be long."""

_MEASURED: Final = (Activity.PREFILL, Activity.DECODE)
_RISE: Final = 0.5
_FALL: Final = 0.02
"""An average that is quick to believe in long steps and slow to forget them: short ones may come by the thousand."""

ENOUGH_STEPS: Final = 5
"""Steps of a kind before what they took is believed: the first of a shape are compiled, or read weights from disk."""

DOUBT: Final = 0.3
"""Share of a deadline after which another host had better be made ready."""

BARREN_STEPS: Final = 3
"""Steps that may bring nothing, as one that only clears a cancelled sequence away; one that lasts is judged by time."""


class UsualStep:
    """How long a lane's step of each kind takes, in seconds: an average that outlives the host it was measured on."""

    def __init__(self) -> None:
        self._usual_s: dict[tuple[Lane, Activity], float] = {}
        self._measured: Counter[tuple[Lane, Activity]] = Counter()

    def took(self, lane: Lane, activity: Activity, step_s: float, steps: int = 1) -> None:
        """More steps, and their mean."""
        self._measured[lane, activity] += steps
        before_s = self._usual_s.get((lane, activity), step_s)
        weight = _RISE if step_s > before_s else _FALL
        self._usual_s[lane, activity] = before_s + weight * (step_s - before_s)

    def deadline_s(self, lane: Lane, activity: Activity) -> float:
        """How long such a step may take."""
        if self._measured[lane, activity] < ENOUGH_STEPS:
            return UNMEASURED_S[activity]
        return max(MIN_DEADLINE_S, TIMES_USUAL * self._usual_s[lane, activity])


class Watchdog:
    """Watches one host. :attr:`doubtful`: its deadline may come.

    Args:
        usual: what steps of this router's hosts usually take; shared by its hosts, one after the other.
        now_s: the clock of :meth:`observe`, at the start.
    """

    def __init__(self, usual: UsualStep, now_s: float) -> None:
        self._usual = usual
        self._looked_s = now_s
        self.doubtful = False
        self._beat = Beat()
        self._signs = 0.0
        self._heard = self._count_when_heard = 0
        self._same_s = self._silent_s = 0.0
        self._lanes = {lane: _LaneWatch() for lane in LANES}

    def observe(self, beat: Beat, *, heard: int, signs: float, now_s: float) -> str | None:
        """Look at a host that is expected to live. What it says is why the host must be replaced, None if it need not.

        Args:
            beat: its device loop.
            heard: messages that have come from it so far.
            signs: a number that grows while its process gets on: what a load is judged by, for it is one long activity.
            now_s: a monotonic clock.
        """
        elapsed_s = min(max(now_s - self._looked_s, 0.0), MAX_TICK_S)
        self._looked_s = now_s
        last, self._beat = self._beat, beat
        loading = beat.activity is Activity.LOAD
        begun = beat.count - last.count
        self._learn(last, beat, self._same_s + elapsed_s)
        self._same_s = 0.0 if begun or (loading and signs != self._signs) else self._same_s + elapsed_s
        self._signs = signs
        if heard != self._heard:
            self._heard, self._count_when_heard = heard, beat.count
        turning = not loading and beat.count > self._count_when_heard + SILENT_BEATS
        self._silent_s = self._silent_s + elapsed_s if turning else 0.0
        for index, (lane, watch) in enumerate(self._lanes.items()):
            stepping = beat.activity if beat.activity in _MEASURED and beat.lane == lane else None
            watch.look(beat.steps[index], beat.computed[index], stepping, elapsed_s)
        return self._verdict(beat)

    def _learn(self, last: Beat, beat: Beat, longest_s: float) -> None:
        """What the steps took that ended since the last look; one that slept with the machine, as long as this saw."""
        for (lane, activity), before, now in zip(KINDS, last.took, beat.took, strict=True):
            steps = now.steps - before.steps
            if steps > 0:
                self._usual.took(lane, activity, min((now.seconds - before.seconds) / steps, longest_s), steps)

    def _verdict(self, beat: Beat) -> str | None:
        waits = [
            (self._same_s, self._usual.deadline_s(beat.lane, beat.activity), f"{beat} has not moved for"),
            (self._silent_s, SILENCE_S, "while its device loop turned, it has said nothing for"),
        ]
        waits += [
            (
                watch.fruitless_s,
                self._usual.deadline_s(lane, watch.activity),
                f"the steps of the {lane} lane have computed nothing for",
            )
            for lane, watch in self._lanes.items()
            if watch.barren_steps > BARREN_STEPS
        ]
        self.doubtful = any(waited_s > DOUBT * deadline_s for waited_s, deadline_s, _ in waits)
        return next((f"{what} {waited_s:.1f} s" for waited_s, deadline_s, what in waits if waited_s > deadline_s), None)


class _LaneWatch:
    """One lane: for how long it has been stepped without getting anywhere."""

    def __init__(self) -> None:
        self.fruitless_s = 0.0
        self.activity = Activity.DECODE
        self.barren_steps = 0
        self._steps = self._computed = 0

    def look(self, steps: int, computed: int, stepping: Activity | None, elapsed_s: float) -> None:
        if stepping is not None:
            self.activity = stepping
        self.barren_steps += steps - self._steps
        if computed != self._computed:
            self.fruitless_s = 0.0
            self.barren_steps = 0
        elif steps != self._steps or stepping is not None:
            self.fruitless_s += elapsed_s
        self._steps, self._computed = steps, computed
