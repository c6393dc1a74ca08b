"""What snapshots say over time: rates and shares, as :mod:`opta_router.top_view` shows them. Pure."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final, get_args

from lanes.wire import Lane
from opta_router.http.live_view import Snapshot
from opta_router.journal import MAX_ENDED, Entry

RATE_S: Final = 2.5
SHARE_S: Final = 12.0
RECENT: Final = 20


class Watch:
    """The snapshots of the last :data:`SHARE_S`, and the requests that ended."""

    def __init__(self) -> None:
        self._snapshots: deque[Snapshot] = deque()
        self.ended: deque[Entry] = deque(maxlen=MAX_ENDED)

    @property
    def now(self) -> Snapshot | None:
        """The last snapshot."""
        return self._snapshots[-1] if self._snapshots else None

    def take(self, event: Snapshot | Entry) -> None:
        """What the router says. Of another router than before: that one is forgotten."""
        if isinstance(event, Entry):
            if all(entry.seq != event.seq for entry in self.ended):  # told again after a reconnection
                self.ended.append(event)
            return
        if self.now is not None and self.now.started_s != event.started_s:
            self._snapshots.clear()
            self.ended.clear()
        self._snapshots.append(event)
        while self._snapshots[0].at_s < event.at_s - SHARE_S:
            self._snapshots.popleft()

    def tokens_per_s(self, lane: Lane) -> float | None:
        """Tokens that the lane made a second, lately; None where nobody counts them."""
        then, now = self._since(RATE_S)
        elapsed_s = now.at_s - then.at_s
        if now.tokens is None or then.tokens is None:
            return None
        return max(now.tokens[lane] - then.tokens[lane], 0) / elapsed_s if elapsed_s else 0.0

    def device_shares(self) -> dict[Lane, float] | None:
        """Each lane's part of the device time that was used lately; None if none was."""
        then, now = self._since(SHARE_S)
        used_s: dict[Lane, float] = {
            lane: now.lanes[lane].device_s - then.lanes[lane].device_s for lane in get_args(Lane)
        }
        whole_s = sum(used_s.values())
        return {lane: used / whole_s for lane, used in used_s.items()} if whole_s > 0 else None

    def first_token_ms(self, lane: Lane) -> float | None:
        """The median of the lane's last :data:`RECENT` answers; None if it had none."""
        times = [
            entry.opta.ttft_ms
            for entry in self.ended
            if entry.lane == lane and entry.opta is not None and entry.opta.ttft_ms is not None
        ]
        return statistics.median(times[-RECENT:]) if times else None

    def _since(self, seconds: float) -> tuple[Snapshot, Snapshot]:
        now = self._snapshots[-1]
        return next(one for one in self._snapshots if one.at_s >= now.at_s - seconds), now
