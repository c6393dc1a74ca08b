"""When the next host is started, and which models it is not to load. Pure.

Two circuit breakers (M. Nygard, "Release It!", 2007). The host's: lives that got nobody going are started less and
less often. A model's: one that was loading or stepping whenever its hosts died, and of which none of those got a
request going, is *quarantined*, so that the others come back; after a while it is tried again, and its next such death
quarantines it for longer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import Final

import msgspec

BACKOFF_S: Final = (0.0, 1.0, 3.0, 8.0, 18.0, 30.0)
"""Wait before a start, by the fruitless lives in a row before it; the last repeats: at most five starts a minute."""

JITTER: Final = 0.25
"""Waits are longer by up to this share, so that routers that fell together do not rise together."""

HEALTHY_S: Final = 60.0
"""A host that lived for so long was no failed start, even if nobody asked it anything."""

GIVE_UP_LIVES: Final = 5
"""Fruitless lives in a row after which whoever waits for a host is told that there is none."""

QUARANTINE_DEATHS: Final = 3
QUARANTINE_S: Final = 60.0
MAX_QUARANTINE_S: Final = 15 * 60.0


class Quarantine(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is not loaded, until ``until_s`` of :class:`Restarts`' clock; ``cause`` is the last death's."""

    until_s: float
    deaths: int
    cause: str


class _Record:
    def __init__(self) -> None:
        self.deaths = 0
        self.in_a_row = 0
        self.quarantines = 0


class Restarts:
    """The history of one router's hosts.

    Args:
        now_s: a monotonic clock.
        chance: 0 to 1.
    """

    def __init__(self, now_s: Callable[[], float], chance: Callable[[], float] = random.random) -> None:
        self._now_s = now_s
        self._chance = chance
        self._records: dict[str, _Record] = {}
        self._quarantined: dict[str, Quarantine] = {}
        self._started_s = now_s()
        self.fruitless = 0

    @property
    def given_up(self) -> bool:
        """Whether hosts fail to come up so often that nobody should wait for the next."""
        return self.fruitless >= GIVE_UP_LIVES

    def wait_s(self) -> float:
        """How long to wait before the next start."""
        wait_s = BACKOFF_S[min(self.fruitless, len(BACKOFF_S) - 1)]
        return wait_s * (1 + JITTER * self._chance())

    def started(self) -> None:
        """A host is started."""
        self._started_s = self._now_s()

    def died(self, suspect: str | None, fruitful: Collection[str], cause: str) -> None:
        """The host that was started last is gone.

        Args:
            suspect: the model that was loading or stepping; None if none was.
            fruitful: the models that got a request going: through its prefill, and further.
            cause: in words.
        """
        lived_s = self._now_s() - self._started_s
        self.fruitless = 0 if fruitful or lived_s >= HEALTHY_S else self.fruitless + 1
        for model in fruitful:
            self._records.pop(model, None)
        if suspect is None or suspect in fruitful:
            return
        record = self._records.setdefault(suspect, _Record())
        record.deaths += 1
        record.in_a_row += 1
        if record.in_a_row >= QUARANTINE_DEATHS:
            until_s = self._now_s() + min(QUARANTINE_S * 2**record.quarantines, MAX_QUARANTINE_S)
            record.quarantines += 1
            record.in_a_row = QUARANTINE_DEATHS - 1  # one more chance
            self._quarantined[suspect] = Quarantine(until_s=until_s, deaths=record.deaths, cause=cause)
            self.fruitless = 0  # the next host comes without it, and deserves its own chances

    def quarantined(self) -> dict[str, Quarantine]:
        """The models that are not to be loaded now."""
        now_s = self._now_s()
        self._quarantined = {name: entry for name, entry in self._quarantined.items() if entry.until_s > now_s}
        return dict(self._quarantined)

    def lift(self, model: str) -> None:
        """Somebody knows better: the model may be loaded, with all its chances."""
        self._quarantined.pop(model, None)
        self._records.pop(model, None)
