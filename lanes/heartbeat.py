"""What a host's device loop is doing, on a page of memory that it shares with its router.

The loop writes what it begins before it begins it, which costs a microsecond and waits for nobody. The router reads the
page whenever it likes, also after the host's death: then it says what killed it. A message would come too late for
that, and would say that the wire thread is alive, not the device.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec

from lanes.engines.base import Emission, Engine
from lanes.environment import HEARTBEAT_FD_VARIABLE
from lanes.wire import Lane

PAGE_BYTES: Final = 4096
MODEL_BYTES: Final = 256

_VERSION: Final = struct.Struct("=Q")
_READS: Final = 100


class Activity(StrEnum):
    """What a device loop can be in the middle of."""

    STARTING = "starting"  # it has not begun yet
    IDLE = "idle"  # nothing to do; it looks about once a second
    LOAD = "load"
    PREFILL = "prefill"  # a step of a lane in which somebody waits for a first token
    DECODE = "decode"


_ACTIVITIES: Final = tuple(Activity)
LANES: Final[tuple[Lane, Lane]] = ("interactive", "throughput")

Kind = tuple[Lane, Activity]
KINDS: Final[tuple[Kind, ...]] = tuple((lane, what) for lane in LANES for what in (Activity.PREFILL, Activity.DECODE))
"""The kinds of steps."""

_PAGE: Final = struct.Struct(f"=QQQQQ{len(KINDS)}Q{len(KINDS)}dBBH{MODEL_BYTES}s")


class Took(msgspec.Struct, frozen=True):
    """What the steps of one kind took that have ended, all together."""

    steps: int = 0
    seconds: float = 0.0


class Beat(msgspec.Struct, frozen=True):
    """A device loop at one moment. ``count`` is what it has begun so far.

    ``steps`` and ``computed`` are for each of :data:`LANES` how many steps it has begun there, and how many tokens
    those that have ended computed. ``lane`` is meaningful for a step, ``model`` for a step and a load. ``took`` is for
    each of :data:`KINDS`; a step that is begun and waited for later counts as two.
    """

    count: int = 0
    steps: tuple[int, int] = (0, 0)
    computed: tuple[int, int] = (0, 0)
    activity: Activity = Activity.STARTING
    lane: Lane = "interactive"
    model: str = ""
    took: tuple[Took, ...] = (Took(),) * len(KINDS)

    def __str__(self) -> str:
        if self.activity is Activity.LOAD:
            return f"the load of {self.model}"
        if self.activity in (Activity.PREFILL, Activity.DECODE):
            return f"a {self.activity} step of {self.model} in the {self.lane} lane"
        return f"its {self.activity} loop"


class Heartbeat:
    """The device loop's side. Each method is called on the device thread, as the thing begins.

    Args:
        page: at least :data:`PAGE_BYTES`, zeroed; none: one that nobody else reads.
        now_s: a monotonic clock.
    """

    def __init__(
        self, page: mmap.mmap | bytearray | None = None, now_s: Callable[[], float] = time.perf_counter
    ) -> None:
        self._page = bytearray(PAGE_BYTES) if page is None else page
        self._now_s = now_s
        self._took_steps = [0] * len(KINDS)
        self._took_s = [0.0] * len(KINDS)
        self._kind: int | None = None  # of the step that is under way
        self._since_s = 0.0
        self._version = 0
        self._count = 0
        self._steps = [0, 0]
        self._computed = [0, 0]
        self._seen: WeakKeyDictionary[Engine, int] = WeakKeyDictionary()
        self._without_token: dict[str, Engine] = {}

    def idle(self) -> None:
        """The loop waits for something to do."""
        self._begin(Activity.IDLE)

    def loading(self, model: str) -> None:
        """A model is loaded."""
        self._begin(Activity.LOAD, model=model)

    def added(self, request_id: str, engine: Engine) -> None:
        """A sequence waits for its first token."""
        self._without_token[request_id] = engine

    def left(self, request_id: str) -> None:
        """A sequence was cancelled."""
        self._without_token.pop(request_id, None)

    def stepping(self, lane: Lane, model: str, engine: Engine) -> None:
        """A step begins."""
        self._steps[LANES.index(lane)] += 1
        self.waiting(lane, model, engine)

    def waiting(self, lane: Lane, model: str, engine: Engine) -> None:
        """The loop waits for the end of a step that began before."""
        prefill = engine in self._without_token.values()
        self._begin(Activity.PREFILL if prefill else Activity.DECODE, lane, model)

    def stepped(self, lane: Lane, engine: Engine, emissions: Sequence[Emission]) -> None:
        """A step has brought something, or has ended."""
        self._computed[LANES.index(lane)] += engine.computed_tokens - self._seen.get(engine, 0)
        self._seen[engine] = engine.computed_tokens
        for emission in emissions:
            if emission.token_ids or emission.finish is not None or emission.error is not None:
                self.left(emission.request_id)

    def _begin(self, activity: Activity, lane: Lane = "interactive", model: str = "") -> None:
        self._count += 1
        now_s = self._now_s()
        if self._kind is not None:
            self._took_steps[self._kind] += 1
            self._took_s[self._kind] += now_s - self._since_s
        self._kind = KINDS.index((lane, activity)) if (lane, activity) in KINDS else None
        self._since_s = now_s
        name = model.encode()[:MODEL_BYTES]
        beat = _PAGE.pack(
            self._count,
            *self._steps,
            *self._computed,
            *self._took_steps,
            *self._took_s,
            _ACTIVITIES.index(activity),
            LANES.index(lane),
            len(name),
            name,
        )
        # An odd version says that what follows is being written; one writer, so no lock (a seqlock).
        _VERSION.pack_into(self._page, 0, self._version + 1)
        self._page[_VERSION.size : _VERSION.size + _PAGE.size] = beat
        self._version += 2
        _VERSION.pack_into(self._page, 0, self._version)


class HeartbeatPage:
    """The router's side. ``fd`` is for the host to inherit; its environment says under which number."""

    def __init__(self, page: mmap.mmap, fd: int) -> None:
        self._page = page
        self.fd = fd
        self._last = Beat()

    def read(self) -> Beat:
        """The loop, now; what it was a moment ago if it died while it wrote."""
        for _ in range(_READS):
            (before,) = _VERSION.unpack_from(self._page, 0)
            fields = _PAGE.unpack_from(self._page, _VERSION.size)
            (after,) = _VERSION.unpack_from(self._page, 0)
            if before == after and not before % 2:
                if before:
                    self._last = _beat(fields)
                break
        return self._last


def _beat(fields: tuple[Any, ...]) -> Beat:
    """Whatever stands on the page: the host writes it, and the router must not fall over it."""
    count, *counters, activity, lane, size, name = fields
    took = counters[4:]
    return Beat(
        count,
        (counters[0], counters[1]),
        (counters[2], counters[3]),
        _ACTIVITIES[activity] if activity < len(_ACTIVITIES) else Activity.STARTING,
        LANES[lane] if lane < len(LANES) else LANES[0],
        name[: min(size, MODEL_BYTES)].decode(errors="replace"),
        tuple(map(Took, took[: len(KINDS)], took[len(KINDS) :])),
    )


@contextmanager
def shared_page() -> Iterator[HeartbeatPage]:
    """A new page, for one host. It has no name in the file system, and is gone with its last process."""
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE_BYTES)
        with mmap.mmap(file.fileno(), PAGE_BYTES) as page:
            yield HeartbeatPage(page, file.fileno())


def inherited() -> Heartbeat:
    """In a host: on the page that its router reads; on one of its own if it was started without."""
    fd = os.environ.pop(HEARTBEAT_FD_VARIABLE, "")
    return Heartbeat(mmap.mmap(int(fd), PAGE_BYTES) if fd else None)
