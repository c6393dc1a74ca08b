"""What the router knows of each pair, and what it has the host do about them: the shell around the decider.

Requests take a lease on their pair before they take a slot in a lane, so that nobody who waits for a load keeps a slot
from those who could run.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TextIO

import anyio
import msgspec

from lanes import residency, wire
from lanes.errors import PairQueueFull, PairUnavailable, PairWaitedTooLong, WireError
from lanes.pair_states import PairState
from lanes.residency import Lease, Need, PairLimits, PairView, Residency, written_bytes
from lanes.states import IllegalTransition

log = logging.getLogger(__name__)

UNLIMITED_BYTES: Final = 1 << 62
NEXT: Final[dict[wire.Stage, wire.Stage]] = {
    "fetching": "examining",
    "examining": "target",
    "target": "draft",
    "draft": "calibrating",
}


class PairPolicy(msgspec.Struct, frozen=True):
    """What somebody else decides of pairs.

    ``limit_of``: of the device's memory in bytes (0: unknown), what all pairs together may take. ``objection``: why a
    pair that has been looked at must not be loaded; None: nothing stands against it. ``prompt_caches_of``: of the same
    memory, what prompt caches may take as long as no pair needs it.
    """

    limit_of: Callable[[int], int] = lambda total_bytes: total_bytes or UNLIMITED_BYTES
    objection: Callable[[str, wire.PairFacts], str | None] = lambda name, facts: None
    prompt_caches_of: Callable[[int], int] = lambda total_bytes: 0


class Progress(msgspec.Struct, frozen=True):
    """How far a pair that is on its way has come. ``next`` is the stage after this one."""

    stage: wire.Stage
    done_bytes: int
    total_bytes: int
    elapsed_s: float
    next: wire.Stage | None


class Pairs:
    """The pairs of one host. On one event loop; :meth:`run` is its one task.

    Args:
        specs: the configured models.
        policy: see :class:`PairPolicy`.
        now_s: a monotonic clock.
        terminal: where progress is drawn, if that is a terminal.
    """

    def __init__(
        self,
        specs: Sequence[wire.ModelSpec],
        policy: PairPolicy,
        now_s: Callable[[], float] = time.monotonic,
        terminal: TextIO | None = None,
    ) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._policy = policy
        self._now_s = now_s
        self._terminal = terminal or sys.stderr
        self._residency = Residency(PairLimits(spec.name, spec.keep_alive_s, spec.preload) for spec in specs)
        self._send: Callable[[wire.ToHost], None] | None = None
        self._seats: dict[Lease, _Seat] = {}
        self._changed = anyio.Event()
        self._began_s: dict[str, float] = {}
        self._progress: dict[str, wire.ModelProgress] = {}
        self._on_settled: Callable[[], None] = lambda: None
        self._most_prompt_cache_bytes = 0
        self.prompt_cache_limit_bytes = 0
        self.loaded: dict[str, wire.ModelInfo] = {}
        self.facts: dict[str, wire.PairFacts] = {}

    # requests

    @asynccontextmanager
    async def leased(self, name: str, timeout_s: float, max_waiting: int) -> AsyncIterator[bool]:
        """Hold a pair: it is resident inside, and stays. Waits for its load if need be; gives whether it was.

        Args:
            name: one of the configured ones.
            timeout_s: how long to wait.
            max_waiting: how many may wait for any pair at once, this one included.

        Raises:
            PairUnavailable: it cannot be loaded.
            PairWaitedTooLong: it was not there in time.
            PairQueueFull: too many wait already.
        """
        lease, seat = Lease(name), _Seat()
        self._seats[lease] = seat
        try:
            self._perform(self._residency.acquire(lease, self._now_s()))
            waited = not seat.decided.is_set()
            if waited:
                if len(self._waiting()) > max_waiting:
                    raise PairQueueFull(f"{max_waiting} requests wait for models to be loaded already")
                with anyio.move_on_after(timeout_s):
                    await seat.decided.wait()
            if seat.refusal is not None:
                raise PairUnavailable(f"model {name} is not available: {seat.refusal}")
            if not seat.decided.is_set():
                raise PairWaitedTooLong(f"model {name} is {self.view(name).state}, and was not loaded in time")
            yield waited
        finally:
            del self._seats[lease]
            self._perform(self._residency.release(lease, self._now_s()))

    def refusal(self, name: str) -> str | None:
        """Why a request for the pair would be refused now; None if it would not."""
        return self._residency.refusal(name, self._now_s())

    def turn_away(self, why: str) -> None:
        """Refuse the pair to everyone who waits for it now."""
        for lease in self._waiting():
            self._seats[lease].decide(why)

    # operators

    def load(self, name: str) -> None:
        """Make a pair resident; :meth:`view` says how it goes."""
        self._perform(self._residency.load(name, self._now_s()))

    def unload(self, name: str) -> None:
        """Give a pair's memory back when nobody uses it any more."""
        self._perform(self._residency.unload(name, self._now_s()))

    def forgive(self, name: str) -> None:
        """End a quarantine."""
        self._perform(self._residency.forgive(name, self._now_s()))

    def view(self, name: str) -> PairView:
        """One pair as it stands."""
        return next(view for view in self._residency.views() if view.name == name)

    def views(self) -> list[PairView]:
        """Every pair, in the configuration's order."""
        return self._residency.views()

    def progress(self, name: str) -> Progress | None:
        """How far it has come; None for one that is not on its way."""
        said = self._progress.get(name)
        if said is None:
            return None
        following = NEXT.get(said.stage)
        if following == "draft" and self._specs[name].draft is None:
            following = "calibrating"
        elapsed_s = round(self._now_s() - self._began_s[name], 1)
        return Progress(said.stage, said.done_bytes, said.total_bytes, elapsed_s, following)

    def seconds_in_state(self, name: str) -> float:
        """For how long it has been in its state."""
        return round(self._now_s() - self.view(name).since_s, 1)

    @property
    def limit_bytes(self) -> int:
        """What all pairs together may take; 0 while no host has said what there is."""
        return self._residency.limit_bytes

    def failures(self) -> dict[str, str]:
        """Pairs that could not be loaded, and why."""
        return {view.name: view.message or "" for view in self.views() if view.state is PairState.FAILED}

    # the host

    @property
    def starting(self) -> list[str]:
        """What is to be there from the host's start, and is not yet."""
        on_their_way = {PairState.PREPARING, PairState.WAITING, PairState.LOADING}
        return [view.name for view in self.views() if view.state in on_their_way] if self._residency.starting else []

    def host_started(
        self, memory_bytes: int, send: Callable[[wire.ToHost], None], on_settled: Callable[[], None]
    ) -> None:
        """A host listens to ``send``. ``on_settled`` is called whenever nothing that it starts with is missing."""
        self._send = send
        self._on_settled = on_settled
        self._most_prompt_cache_bytes = self._policy.prompt_caches_of(memory_bytes)
        self.prompt_cache_limit_bytes = 0  # a new host keeps nothing before it is told to
        self._perform(self._residency.host_started(self._policy.limit_of(memory_bytes), self._now_s()))

    def host_lost(self) -> None:
        """It is gone, and all that it had loaded."""
        self._send = None
        self._on_settled = lambda: None
        self.loaded.clear()
        self._progress.clear()
        self._residency.host_lost(self._now_s())

    def quarantine(self, name: str, until_s: float, why: str) -> None:
        """The host that is gone died of the pair: the next comes without it, and whoever waits for it is refused.

        Args:
            name: one of the configured ones.
            until_s: on this object's clock; from then on it is loaded again if somebody asks for it.
            why: what a request is told.
        """
        self._perform(self._residency.quarantine(name, until_s, why, self._now_s()))

    def received(self, message: wire.FromHost) -> bool:
        """Take what the host says of a pair; False if it is of something else.

        Raises:
            WireError: it cannot be, as things stand.
        """
        try:
            return self._received(message)
        except (IllegalTransition, KeyError) as exc:
            raise WireError(f"unexpected {type(message).__name__} from the host: {exc}") from exc

    def _received(self, message: wire.FromHost) -> bool:
        now_s = self._now_s()
        match message:
            case wire.ModelPrepared(name, facts):
                self.facts[name] = facts
                objection = self._policy.objection(name, facts)
                if objection is not None:
                    self._fail(name, objection)
                else:
                    self._progress.pop(name, None)
                    self._perform(self._residency.prepared(name, Need(facts.total_bytes, needs(facts)), now_s))
            case wire.ModelProgress(name):
                self._progress[name] = message
                self._draw(message)
            case wire.ModelLoaded(info):
                self.loaded[info.name] = info
                self._progress.pop(info.name, None)
                self._draw(None)
                log.info("loaded %s in %.1f s", info.name, info.load_s)
                self._perform(self._residency.loaded(info.name, info.load_s, now_s))
            case wire.ModelFailed(name, reason):
                self._fail(name, reason)
            case wire.ModelUnloaded(name):
                self.loaded.pop(name, None)
                log.info("unloaded %s", name)
                self._perform(self._residency.unloaded(name, now_s))
            case _:
                return False
        return True

    def _fail(self, name: str, reason: str) -> None:
        self._progress.pop(name, None)
        self._draw(None)
        log.error("model %s: %s", name, reason)
        self._perform(self._residency.failed(name, reason, self._now_s()))

    # time

    async def run(self) -> None:
        """See to what the passing of time brings, until cancelled."""
        while True:
            self._changed = anyio.Event()
            now_s = self._now_s()
            with anyio.move_on_after(self._residency.due_s(now_s) - now_s):
                await self._changed.wait()
            self._perform(self._residency.tick(self._now_s()))

    def _perform(self, effects: list[residency.Effect]) -> None:
        self._limit_prompt_caches()
        for effect in effects:
            match effect:
                case residency.Granted(lease):
                    self._seats[lease].decide(None)
                case residency.Refused(lease, message):
                    self._seats[lease].decide(message)
                case residency.Prepare(name):
                    self._began_s[name] = self._now_s()
                    self._order(wire.Prepare(name))
                case residency.Load(name):
                    self._order(wire.Load(name))
                    facts = self.facts[name]
                    log.info("loading %s: %s", name, written_bytes(facts.target_bytes + facts.draft_bytes))
                case residency.Unload(name):
                    self._order(wire.Unload(name))
        self._changed.set()
        if not self._residency.starting:
            self._on_settled()

    def _limit_prompt_caches(self) -> None:
        """Prompt caches have what the pairs leave. Said before the load that leaves less."""
        left_bytes = self._residency.limit_bytes - self._residency.held_bytes
        limit_bytes = max(min(self._most_prompt_cache_bytes, left_bytes), 0)
        if limit_bytes != self.prompt_cache_limit_bytes and self._send is not None:
            self.prompt_cache_limit_bytes = limit_bytes
            self._send(wire.LimitPromptCaches(limit_bytes))

    def _order(self, message: wire.ToHost) -> None:
        if self._send is not None:
            self._send(message)

    def _waiting(self) -> list[Lease]:
        return [lease for lease, seat in self._seats.items() if not seat.decided.is_set()]

    def _draw(self, progress: wire.ModelProgress | None) -> None:
        """One line that is overwritten; a line of the log that follows begins at its start."""
        if not self._terminal.isatty():
            return
        line = ""
        if progress is not None:
            of = f" of {written_bytes(progress.total_bytes)}" if progress.total_bytes else ""
            done = f" {written_bytes(progress.done_bytes)}{of}" if progress.done_bytes else ""
            elapsed_s = self._now_s() - self._began_s[progress.name]
            line = f"{progress.name}: {progress.stage}{done}, {elapsed_s:.0f} s"
        self._terminal.write(f"\r\x1b[K{line}\r")
        self._terminal.flush()


class _Seat:
    """Where a request hears what became of its lease."""

    def __init__(self) -> None:
        self.decided = anyio.Event()
        self.refusal: str | None = None

    def decide(self, refusal: str | None) -> None:
        self.refusal = refusal
        self.decided.set()


def needs(facts: wire.PairFacts) -> str:
    """What a pair needs and how that comes about, for people."""
    draft = f"draft {written_bytes(facts.draft_bytes)}, " if facts.draft_bytes else ""
    return (
        f"{written_bytes(facts.total_bytes)}: target {written_bytes(facts.target_bytes)}, {draft}"
        f"KV caches {written_bytes(facts.kv_bytes)} for {facts.kv_sequences} x {facts.context_tokens} tokens"
    )
