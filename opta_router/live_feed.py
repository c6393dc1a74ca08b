"""The live page's event stream: one look at the router for all who watch, at most four times a second.

There is no task behind it: whoever watches waits for the next frame's time, and the first to wake makes the frame. So
without viewers nothing happens at all, and with many of them each frame is made and encoded once.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from opta_router.dialects.framing import sse
from opta_router.errors import TooManyViewers
from opta_router.journal import Journal

FRAME_S: Final = 0.25
MAX_VIEWERS: Final = 32
VIEWER_RETRY_S: Final = 10


class Feed:
    """One for each router, on its event loop.

    Args:
        look: makes a snapshot, as JSON.
        journal: has the requests that have ended.
        stopped: whether the router is about to end; streams end then, too.
        now_s: a monotonic clock.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        look: Callable[[], bytes],
        journal: Journal,
        stopped: Callable[[], bool],
        now_s: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._look = look
        self._journal = journal
        self._stopped = stopped
        self._now_s = now_s
        self._sleep = sleep
        self._frame = b""
        self._frame_s = -math.inf
        self._frames = 0
        self._viewers = 0

    def stats(self) -> dict[str, int]:
        """Who watches, and how many frames were made."""
        return {"viewers": self._viewers, "frames": self._frames}

    @contextmanager
    def watched(self) -> Iterator[Viewer]:
        """Watch, for as long as the context lasts.

        Raises:
            TooManyViewers: there are :data:`MAX_VIEWERS` already.
        """
        if self._viewers >= MAX_VIEWERS:
            raise TooManyViewers(f"{MAX_VIEWERS} watch already", retry_after_s=VIEWER_RETRY_S)
        self._viewers += 1
        try:
            yield Viewer(self)
        finally:
            self._viewers -= 1

    async def frame_after(self, seen_s: float) -> tuple[bytes, float] | None:
        """A frame made later than ``seen_s``, and when; None when the router stops."""
        if self._frame_s <= seen_s:
            await self._sleep(max(self._frame_s + FRAME_S - self._now_s(), 0.0))
        if self._stopped():
            return None
        now_s = self._now_s()
        if self._frame_s <= seen_s or now_s - self._frame_s >= FRAME_S:
            self._frame, self._frame_s = sse(self._look(), "snapshot"), now_s
            self._frames += 1
        return self._frame, self._frame_s

    def ended_after(self, order: int) -> tuple[bytes, int]:
        """Events of the requests that ended after the ``order``-th end, and how many have ended."""
        ended = self._journal.ended_after(order)
        return b"".join(sse(one.encoded, "ended") for one in ended), self._journal.ends


class Viewer:
    """One who watches a feed."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._seen_s = -math.inf
        self._seen_order = 0

    async def events(self) -> bytes | None:
        """The next server-sent events: ``ended`` for each request that has, ``snapshot`` for all the rest; None when
        the router stops. Whoever asks slowly gets fewer snapshots, and every ``ended`` that the journal still has.
        """
        frame = await self._feed.frame_after(self._seen_s)
        if frame is None:
            return None
        data, self._seen_s = frame
        ended, self._seen_order = self._feed.ended_after(self._seen_order)
        return ended + data
