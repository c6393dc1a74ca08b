"""Which pairs are on the device, which come, which must go, and who waits. Pure: times come in, effects come out.

A pair that is not resident is loaded once, for however many want it. Where the memory does not do for all, the ones
that nobody uses go first, least recently used first; then those that are used stop taking new requests, and go when
the last has ended. Never before they have been resident for a multiple of what their load took: two pairs that fit only
one at a time would otherwise do nothing but change places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from lanes.pair_states import PairEvent, PairState, after

RESIDENCY_PER_LOAD: Final = 4.0
"""A pair stays for this many times what its load took, so that changing places takes a fifth of the time at most."""

MIN_RESIDENCY_S: Final = 1.0
MAX_RESIDENCY_S: Final = 15.0
"""Whoever waits for another pair has a deadline: half of the interactive lane's usual one."""

RETRY_S: Final = 60.0
"""How long a pair that could not be loaded is not tried again for a request; an operator may at any time."""


class PairLimits(msgspec.Struct, frozen=True):
    """What the configuration says of one pair. A negative ``keep_alive_s`` pins it: only an operator makes it go."""

    name: str
    keep_alive_s: float = -1.0
    preload: bool = False

    @property
    def pinned(self) -> bool:
        """Whether it stays, whoever wants its memory."""
        return self.keep_alive_s < 0


class Need(msgspec.Struct, frozen=True):
    """What a pair takes of the device's memory, in bytes; ``said`` is how that comes about, for an operator."""

    total_bytes: int
    said: str = ""


class Lease(msgspec.Struct, eq=False):
    """One request's right to a pair: from being granted to being released, the pair is resident."""

    name: str


class Prepare(msgspec.Struct, frozen=True):
    """Have the pair's files looked at."""

    name: str


class Load(msgspec.Struct, frozen=True):
    """Have it loaded."""

    name: str


class Unload(msgspec.Struct, frozen=True):
    """Have its memory given back, or its load given up."""

    name: str


class Granted(msgspec.Struct, frozen=True):
    """The pair is resident, and stays for as long as the lease is held."""

    lease: Lease


class Refused(msgspec.Struct, frozen=True):
    """The pair cannot be had."""

    lease: Lease
    message: str


Effect = Prepare | Load | Unload | Granted | Refused


class PairView(msgspec.Struct, frozen=True, kw_only=True):
    """One pair as it stands. Times are on the decider's clock."""

    name: str
    state: PairState
    since_s: float
    in_use: int
    waiting: int
    pinned: bool
    reserved_bytes: int
    message: str | None


class _Pair:
    def __init__(self, limits: PairLimits) -> None:
        self.limits = limits
        self.state = PairState.ABSENT
        self.since_s = 0.0
        self.need: Need | None = None
        self.leases: set[Lease] = set()
        self.waiters: dict[Lease, None] = {}
        self.wanted_s = 0.0  # when whoever has waited longest began
        self.used_s = 0.0
        self.load_s = 0.0
        self.message: str | None = None
        self.retry_s = 0.0  # when a request may have it tried again, if it has failed
        self.quarantined = False
        self.ordered = False  # by an operator
        self.dismissed = False
        self.starting = False  # the host has just started, and this one is to be there from the start

    @property
    def reserved_bytes(self) -> int:
        """What it holds, or will hold when its load has ended."""
        there = self.state in {PairState.LOADING, PairState.RESIDENT, PairState.LEAVING, PairState.UNLOADING}
        return self.need.total_bytes if there and self.need is not None else 0

    @property
    def wanted(self) -> bool:
        return bool(self.waiters) or self.ordered or (self.starting and bool(self.leases))

    def settled_s(self) -> float:
        """When it has been resident for long enough to be made to go."""
        return self.since_s + min(max(RESIDENCY_PER_LOAD * self.load_s, MIN_RESIDENCY_S), MAX_RESIDENCY_S)

    def expires_s(self) -> float:
        """When it has been idle for long enough to go by itself."""
        return math.inf if self.limits.pinned else self.used_s + self.limits.keep_alive_s


class Residency:
    """All pairs of one device.

    Every method that may change something returns what is to be done, in order.

    Args:
        pairs: what the configuration says of them, in its order.
    """

    def __init__(self, pairs: Iterable[PairLimits]) -> None:
        self._pairs = {limits.name: _Pair(limits) for limits in pairs}
        self._limit_bytes = 0
        self._host_is_up = False

    # what requests do

    def acquire(self, lease: Lease, now_s: float) -> list[Effect]:
        """Ask for a pair. Granted at once, or later; or refused."""
        pair = self._pairs[lease.name]
        if pair.state is PairState.RESIDENT:
            pair.leases.add(lease)
            return [Granted(lease)]
        if pair.state is PairState.FAILED and now_s < pair.retry_s:
            return [Refused(lease, pair.message or "it could not be loaded")]
        if not pair.wanted:
            pair.wanted_s = now_s
        pair.waiters[lease] = None
        return [*self._want(pair, now_s), *self._settle(now_s)]

    def release(self, lease: Lease, now_s: float) -> list[Effect]:
        """The request has ended, or does not want the pair any more."""
        pair = self._pairs[lease.name]
        pair.waiters.pop(lease, None)
        if lease in pair.leases:
            pair.leases.discard(lease)
            pair.used_s = now_s
        return self._settle(now_s)

    def refusal(self, name: str, now_s: float) -> str | None:
        """Why a request for the pair would be refused now; None if it would not."""
        pair = self._pairs[name]
        failed = pair.state is PairState.FAILED and now_s < pair.retry_s
        return (pair.message or "it could not be loaded") if failed else None

    # what operators do

    def load(self, name: str, now_s: float) -> list[Effect]:
        """Make the pair resident, as if a request wanted it."""
        pair = self._pairs[name]
        pair.dismissed = False
        if pair.state is PairState.RESIDENT:
            return []
        if not pair.wanted:
            pair.wanted_s = now_s
        pair.ordered = True
        return [*self._want(pair, now_s), *self._settle(now_s)]

    def unload(self, name: str, now_s: float) -> list[Effect]:
        """Give its memory back when the requests that have it have ended; pinned or not.

        A load that nobody but an operator wants is given up.
        """
        pair = self._pairs[name]
        pair.ordered = pair.starting = False
        if pair.state is PairState.RESIDENT:
            self._happened(pair, PairEvent.PRESSED, now_s)
        if pair.state is PairState.LOADING and not (pair.waiters or pair.leases):
            self._happened(pair, PairEvent.IDLE, now_s)
            return [Unload(name), *self._settle(now_s)]
        pair.dismissed = pair.state is PairState.LEAVING
        return self._settle(now_s)

    def forgive(self, name: str, now_s: float) -> list[Effect]:
        """End a quarantine; the pair is loaded for whoever next wants it."""
        self._forgive(self._pairs[name], now_s)
        return self._settle(now_s)

    # what the host says

    def host_started(self, memory_bytes: int, now_s: float) -> list[Effect]:
        """A host can be told what to load. ``memory_bytes`` is what all pairs together may take."""
        self._limit_bytes = memory_bytes
        self._host_is_up = True
        effects: list[Effect] = []
        for pair in self._pairs.values():
            if pair.quarantined and now_s < pair.retry_s:
                continue
            self._forgive(pair, now_s)
            pair.starting = pair.limits.preload or bool(pair.leases)
            if pair.starting or pair.wanted:
                effects += self._want(pair, now_s)
        return effects

    def host_lost(self, now_s: float) -> None:
        """Nothing is resident any more. Who had a pair has it again when the next host is ready."""
        self._host_is_up = False
        for pair in self._pairs.values():
            self._happened(pair, PairEvent.HOST_LOST, now_s)
            pair.need = None
            pair.dismissed = pair.quarantined = False

    def quarantine(self, name: str, until_s: float, message: str, now_s: float) -> list[Effect]:
        """Hosts died of it, and the next is to come without it; the host must have been lost."""
        pair = self._pairs[name]
        refused = self._failed(pair, message, now_s)
        pair.retry_s, pair.quarantined = until_s, True
        return refused

    def prepared(self, name: str, need: Need, now_s: float) -> list[Effect]:
        """Its files have been looked at."""
        pair = self._pairs[name]
        self._happened(pair, PairEvent.PREPARED, now_s)
        pair.need = need
        return self._settle(now_s)

    def loaded(self, name: str, load_s: float, now_s: float) -> list[Effect]:
        """It is resident. ``load_s``: how long that took."""
        pair = self._pairs[name]
        self._happened(pair, PairEvent.LOADED, now_s)
        if pair.state is not PairState.RESIDENT:
            return []  # and unloaded next, for that was asked meanwhile
        pair.load_s, pair.used_s = load_s, now_s
        return [*self._grant(pair), *self._settle(now_s)]

    def failed(self, name: str, message: str, now_s: float) -> list[Effect]:
        """It cannot be loaded, and nothing of it is left in memory."""
        return [*self._failed(self._pairs[name], message, now_s), *self._settle(now_s)]

    def unloaded(self, name: str, now_s: float) -> list[Effect]:
        """Its memory is free."""
        pair = self._pairs[name]
        self._happened(pair, PairEvent.UNLOADED, now_s)
        return [*(self._want(pair, now_s) if pair.wanted else []), *self._settle(now_s)]

    # time

    def tick(self, now_s: float) -> list[Effect]:
        """What the passing of time brings."""
        return self._settle(now_s)

    def due_s(self, now_s: float) -> float:
        """When :meth:`tick` next has something to do; infinity if never."""
        waiting = any(pair.state is PairState.WAITING for pair in self._pairs.values())
        resident = [pair for pair in self._pairs.values() if pair.state is PairState.RESIDENT]
        expiring = (pair.expires_s() for pair in resident if not pair.leases)
        settling = (pair.settled_s() for pair in resident if waiting and not pair.limits.pinned)
        forgiven = (pair.retry_s for pair in self._pairs.values() if pair.quarantined)
        return min((due_s for due_s in (*expiring, *settling, *forgiven) if due_s > now_s), default=math.inf)

    # views

    @property
    def starting(self) -> bool:
        """Whether what is to be there from the host's start is not there yet."""
        return any(pair.starting for pair in self._pairs.values())

    @property
    def limit_bytes(self) -> int:
        """What all pairs together may take."""
        return self._limit_bytes

    @property
    def held_bytes(self) -> int:
        """What the pairs hold of it that are resident, or come, or go."""
        return self._held_bytes()

    def views(self) -> list[PairView]:
        """Every pair, in the configuration's order."""
        return [
            PairView(
                name=name,
                state=pair.state,
                since_s=pair.since_s,
                in_use=len(pair.leases),
                waiting=len(pair.waiters),
                pinned=pair.limits.pinned,
                reserved_bytes=pair.reserved_bytes,
                message=pair.message,
            )
            for name, pair in self._pairs.items()
        ]

    def check_integrity(self) -> None:
        """Raise AssertionError if the books do not balance."""
        assert self._held_bytes() <= self._limit_bytes or not self._held_bytes(), "more is held than allowed"
        for name, pair in self._pairs.items():
            assert not (pair.state is PairState.RESIDENT and pair.waiters), f"{name} is resident, and is waited for"
            assert pair.state is PairState.FAILED or not pair.quarantined, f"{name} is in quarantine, and {pair.state}"
            assert not (pair.state is PairState.UNLOADING and pair.leases), f"{name} leaves under a request"

    # decisions

    def _happened(self, pair: _Pair, event: PairEvent, now_s: float) -> None:
        state = after(pair.state, event)
        # A pair that was about to leave and stays has been resident all along.
        if state is not pair.state and event is not PairEvent.PRESSED and event is not PairEvent.RELIEVED:
            pair.since_s = now_s
        pair.state = state

    def _want(self, pair: _Pair, now_s: float) -> list[Effect]:
        if not self._host_is_up or pair.state not in {PairState.ABSENT, PairState.FAILED}:
            return []
        self._happened(pair, PairEvent.WANTED, now_s)
        pair.message = None
        pair.quarantined = False
        return [Prepare(pair.limits.name)]

    def _forgive(self, pair: _Pair, now_s: float) -> None:
        if pair.quarantined:
            self._happened(pair, PairEvent.FORGIVEN, now_s)
            pair.message = None
            pair.quarantined = False

    def _failed(self, pair: _Pair, message: str, now_s: float) -> list[Effect]:
        self._happened(pair, PairEvent.FAILED, now_s)
        if pair.state is not PairState.FAILED:
            return []  # it was given up; who has wanted it since gets another try
        pair.message = message
        pair.retry_s = now_s + RETRY_S
        pair.ordered = pair.starting = False
        refused: list[Effect] = [Refused(lease, message) for lease in pair.waiters]
        pair.waiters.clear()
        return refused

    def _grant(self, pair: _Pair) -> list[Effect]:
        pair.ordered = pair.starting = False
        granted: list[Effect] = [Granted(lease) for lease in pair.waiters]
        pair.leases |= pair.waiters.keys()
        pair.waiters.clear()
        return granted

    def _settle(self, now_s: float) -> list[Effect]:
        """Bring everything to where nothing more is to be done at ``now_s``."""
        effects: list[Effect] = []
        for name, pair in self._pairs.items():
            if pair.retry_s <= now_s:
                self._forgive(pair, now_s)
            if pair.state is PairState.RESIDENT and not pair.leases and pair.expires_s() <= now_s:
                self._happened(pair, PairEvent.IDLE, now_s)
                effects.append(Unload(name))
        effects += self._admit_waiting(now_s)
        for name, pair in self._pairs.items():
            if pair.state is PairState.LEAVING and not pair.leases:
                self._happened(pair, PairEvent.IDLE, now_s)
                pair.dismissed = False
                effects.append(Unload(name))
        return effects

    def _admit_waiting(self, now_s: float) -> list[Effect]:
        """Let pairs in, oldest demand first, and say which residents must make room for them."""
        effects: list[Effect] = []
        pressed: list[_Pair] = [pair for pair in self._pairs.values() if pair.dismissed]
        # What is free now, and what would be once those that have to leave are gone: a later pair may pass an earlier
        # one only if it takes nothing of what that one waits for.
        free_bytes = self._limit_bytes - self._held_bytes()
        promised_bytes = free_bytes + self._leaving_bytes(pressed)
        waiting = [pair for pair in self._pairs.values() if pair.state is PairState.WAITING]
        for pair in sorted(waiting, key=lambda pair: (not pair.wanted, pair.wanted_s)):
            need_bytes = pair.need.total_bytes if pair.need is not None else 0
            if need_bytes > self._most_bytes(pair):
                effects += self._failed(pair, self._too_large(pair, self._most_bytes(pair)), now_s)
                continue
            for victim in self._victims(pressed, now_s):
                if promised_bytes >= need_bytes or not pair.wanted:
                    break
                pressed.append(victim)
                promised_bytes += victim.reserved_bytes
            if need_bytes <= min(free_bytes, promised_bytes) and (pair.wanted or pair.starting):
                self._happened(pair, PairEvent.ROOM, now_s)
                effects.append(Load(pair.limits.name))
                free_bytes -= need_bytes
            elif not pair.wanted:
                # What is only to be there from the start makes nobody go.
                pair.message = (
                    f"not loaded at the start: {self._too_large(pair, free_bytes)}" if pair.starting else None
                )
                pair.starting = False
                self._happened(pair, PairEvent.WITHDRAWN, now_s)
                continue
            promised_bytes -= need_bytes
        for pair in self._pairs.values():
            if pair.state is PairState.RESIDENT and pair in pressed:
                self._happened(pair, PairEvent.PRESSED, now_s)
            elif pair.state is PairState.LEAVING and pair not in pressed:
                self._happened(pair, PairEvent.RELIEVED, now_s)
                effects += self._grant(pair)
        return effects

    def _victims(self, pressed: list[_Pair], now_s: float) -> list[_Pair]:
        """Who could make room: the idle ones, least recently used first, then the others by the same measure."""
        candidates = [
            pair
            for pair in self._pairs.values()
            if pair.state in {PairState.RESIDENT, PairState.LEAVING}
            and pair not in pressed
            and not pair.limits.pinned
            and (pair.state is PairState.LEAVING or pair.settled_s() <= now_s)
        ]
        # Who leaves already goes on leaving: its requests have begun to end.
        return sorted(candidates, key=lambda p: (p.state is not PairState.LEAVING, bool(p.leases), p.used_s))

    def _held_bytes(self) -> int:
        return sum(pair.reserved_bytes for pair in self._pairs.values())

    def _leaving_bytes(self, pressed: list[_Pair]) -> int:
        pairs = self._pairs.values()
        return sum(pair.reserved_bytes for pair in pairs if pair.state is PairState.UNLOADING or pair in pressed)

    def _most_bytes(self, pair: _Pair) -> int:
        """What ``pair`` could have at best: everything that no pinned one holds."""
        pinned = sum(p.reserved_bytes for p in self._pairs.values() if p is not pair and p.limits.pinned)
        return self._limit_bytes - pinned

    def _too_large(self, pair: _Pair, free_bytes: int) -> str:
        need = pair.need or Need(0)
        held = self._limit_bytes - free_bytes
        others = [n for n, p in self._pairs.items() if p is not pair and p.reserved_bytes]
        holders = f", of which {written_bytes(held)} are held by {', '.join(others)}" if others and held else ""
        return (
            f"it needs {need.said or written_bytes(need.total_bytes)}; memory.limit allows "
            f"{written_bytes(self._limit_bytes)}{holders}"
        )


def written_bytes(size_bytes: int) -> str:
    """A size for people: ``1.5 GiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
