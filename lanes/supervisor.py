"""Keeps one host alive: starts it, watches it, replaces it when it dies or hangs, and ends it with the router.

Requests outlive hosts. Those that were on one wait, and go to the next by :mod:`lanes.resumption`; who submits them
sees a stream that pauses.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio
import msgspec
import psutil
from anyio.abc import TaskGroup, TaskStatus

from lanes import wire
from lanes.client import Generation, Link, OnEnd, OnInterruption, OnProgress
from lanes.errors import HostDied, HostFailedToStart, HostUnavailable, RequestRefused, WireError
from lanes.framing import encode
from lanes.heartbeat import Activity, Beat
from lanes.host_process import Host, greeted, how_it_ended, send_signal
from lanes.pairs import PairPolicy, Pairs
from lanes.restarts import Quarantine, Restarts
from lanes.resumption import next_up
from lanes.states import HostEvent, HostState, after
from lanes.watchdog import TICK_S, UsualStep, Watchdog

log = logging.getLogger(__name__)

STAND_BY_AFTER_S: Final = 20.0
STAND_BY_AT_LAST_S: Final = 60.0
"""How long a host has been ready when another one is started that stands by: while nobody uses the first, for a start
takes seconds of a processor; or at last. When the first is doubted, at once.
"""

HOST_COMMAND: Final = (sys.executable, "-m", "lanes.host")


class HostSettings(msgspec.Struct, frozen=True):
    """What a host is told when it starts, and what decides which of the models it loads.

    ``standby``: whether another host is kept that has loaded nothing, and takes the place of one that dies.
    """

    lanes: Mapping[wire.Lane, wire.LaneSpec]
    models: tuple[wire.ModelSpec, ...]
    pairs: PairPolicy = PairPolicy()
    standby: bool = False


class _Life:
    """One host, from its start to its end. Until its turn comes it stands by."""

    def __init__(self) -> None:
        self.turn = anyio.Event()
        self.over = anyio.Event()
        self.pid: int | None = None
        self.failure: str | None = None


class Supervisor:
    """Owns the host process. :meth:`run` is its one task; everything else is synchronous and on the same event loop.

    Args:
        settings: what every host is told when it starts.
        command: the host's program and arguments, before the path of its socket.
    """

    def __init__(self, settings: HostSettings, command: Sequence[str] = HOST_COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._state = HostState.STOPPED
        self._link: Link | None = None
        self._restarts = Restarts(time.monotonic)
        self._usual_step = UsualStep()
        self._beat = Beat()  # of the host that runs, or ran last
        self._listens = False  # the host has said Ready
        self._been_ready = False
        self._spare: _Life | None = None
        self._waiting: list[Generation] = []
        self._on_trial: Generation | None = None
        self._fruitful: set[str] = set()  # models that have got a request going on this host
        self._became_ready = anyio.Event()
        self._was_lost = anyio.Event()
        self.pairs = Pairs(settings.models, settings.pairs)
        self.stats: wire.Stats | None = None
        self._prompt_caches_before: dict[str, wire.PromptCacheStats] = {}
        self._lanes_before: dict[wire.Lane, wire.LaneStats] = dict.fromkeys(settings.lanes, wire.LaneStats())
        self.versions: wire.Versions | None = None
        self.host_pid: int | None = None
        self.restarts = 0
        self.resumed = 0
        self.last_failure: str | None = None
        self.last_activity: str | None = None

    @property
    def state(self) -> HostState:
        """Where the host is in its life."""
        return self._state

    def not_ready_reasons(self) -> list[str]:
        """Why no request can be taken now; empty if one can."""
        reasons = [] if self._state is HostState.READY else [f"engine is {self._state}"]
        if self._state is HostState.STARTING and self.pairs.starting:
            reasons.append(f"loading {', '.join(self.pairs.starting)}")
        if self._state is HostState.RESTARTING and self.last_failure:
            reasons.append(self.last_failure)
        return reasons

    def refusals(self) -> list[str]:
        """Why a request would be refused now; empty if it would be taken, though it may have to wait for a host.

        The place of a host that did its work is kept for the next one. Nobody is to wait for the first start, which may
        fail, nor for hosts that die as soon as they start.
        """
        if self._state is HostState.READY:
            return []
        recovering = self._state in (HostState.STARTING, HostState.RESTARTING) and self._been_ready
        return [] if recovering and self._restarts.fruitless <= 1 else self.not_ready_reasons()

    @property
    def standby_pid(self) -> int | None:
        """The host that stands by; None if there is none, or it has not said hello yet."""
        return self._spare.pid if self._spare is not None else None

    @property
    def memory_bytes(self) -> int:
        """What the device has; 0 while no host has said."""
        return self.versions.memory_bytes if self.versions is not None else 0

    @property
    def waiting(self) -> int:
        """Requests that have been accepted and are on no host now."""
        return sum(not generation.ended for generation in self._waiting)

    def quarantined(self) -> dict[str, Quarantine]:
        """Models that are not loaded, for they kept killing their host; ``until_s`` is on the monotonic clock."""
        return self._restarts.quarantined()

    def lift_quarantine(self, model: str) -> None:
        """Let a model be loaded again, as if it had never killed a host."""
        self._restarts.lift(model)
        self.pairs.forgive(model)

    @property
    def lanes(self) -> dict[wire.Lane, wire.LaneStats]:
        """What each lane has had from every host so far: its counters never go back.

        As of the last heartbeat; what a host did after its last one is lost with it.
        """
        now = self.stats.lanes if self.stats is not None else {}
        return {lane: before + now.get(lane, wire.LaneStats()) for lane, before in self._lanes_before.items()}

    @property
    def prompt_caches(self) -> dict[str, wire.PromptCacheStats]:
        """By model that has been resident, its counters from every host so far. As of the last heartbeat."""
        now = self.stats.prompt_caches if self.stats is not None else {}
        before, none = self._prompt_caches_before, wire.PromptCacheStats()
        return {model: before.get(model, none) + now.get(model, none) for model in {**before, **now}}

    async def wait_ready(self) -> None:
        """Return when the host takes requests."""
        while self._state is not HostState.READY:
            await self._became_ready.wait()

    async def wait_lost(self) -> None:
        """Return when the host that runs now, or starts next, is lost."""
        await self._was_lost.wait()

    def submit(
        self,
        submit: wire.Submit,
        on_end: OnEnd,
        on_progress: OnProgress | None = None,
        on_interruption: OnInterruption | None = None,
    ) -> Generation:
        """Take a request, for this host and those to come; see :class:`lanes.client.Generation`.

        Raises:
            HostUnavailable: see :meth:`refusals`; ``on_end`` will not be called.
            RequestRefused: its model is in quarantine; ``on_end`` will not be called.
        """
        reasons = self.refusals()
        if reasons:
            raise HostUnavailable("; ".join(reasons))
        quarantine = self.quarantined().get(submit.model)
        if quarantine is not None:
            message = f"model {submit.model} is {_quarantined(quarantine)}"
            raise RequestRefused(wire.FailureCode.MODEL_UNAVAILABLE, message)
        generation = Generation(submit, on_end, on_progress, on_interruption)
        self._waiting.append(generation)
        self._send_waiting()
        return generation

    def set_lanes(self, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> None:
        """Change weights and limits, here and in every host to come."""
        self._settings = msgspec.structs.replace(self._settings, lanes={**self._settings.lanes, **lanes})
        if self._link is not None:
            self._link.send_soon(wire.SetLanes(dict(lanes)))

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep a host running until cancelled; then end it, and wait for its end."""
        task_status.started()
        try:
            async with anyio.create_task_group() as tg:
                while True:
                    await anyio.sleep(self._restarts.wait_s())
                    self._happened(HostEvent.SPAWN)
                    self._restarts.started()
                    self._beat = Beat()
                    self._fruitful = set()
                    life, self._spare = self._spare or self._begin(tg), None
                    life.turn.set()
                    await life.over.wait()
                    self.last_failure = life.failure or self.last_failure
                    if self._state is HostState.STARTING:
                        self._happened(HostEvent.DIED)
                    self._died(self.last_failure or "the host is gone")
        finally:
            self._happened(HostEvent.STOP)
            self.pairs.turn_away("the engine was stopped")
            self._end_waiting(_STOPPED)

    def _begin(self, tg: TaskGroup) -> _Life:
        life = _Life()
        tg.start_soon(self._live, life, tg)
        return life

    async def _live(self, life: _Life, tg: TaskGroup) -> None:
        try:
            async with greeted(self._command) as host:
                life.pid = host.said.pid
                if not life.turn.is_set():
                    await self._stand_by(life, host)
                await self._serve(host, tg)
        except* (HostDied, HostFailedToStart, WireError, OSError) as group:
            life.failure = "; ".join(str(exc) for exc in _leaves(group))
            if self._spare is life:
                log.warning("the host that stood by is gone: %s", life.failure)
                self._spare = None
        finally:
            life.over.set()

    async def _stand_by(self, life: _Life, host: Host) -> None:
        """Return when the host's turn has come.

        Raises:
            HostDied: it ended before.
        """
        real = any(not spec.scripted for spec in self._settings.models)
        await host.stream.send(encode(wire.StandBy(engines=real)))
        async with anyio.create_task_group() as tg:

            async def fail_if_it_ends() -> None:
                raise HostDied(how_it_ended(await host.process.wait()))

            tg.start_soon(fail_if_it_ends)
            await life.turn.wait()
            tg.cancel_scope.cancel()

    def _happened(self, event: HostEvent) -> None:
        self._state = after(self._state, event)
        if self._state is HostState.READY:
            self._been_ready = True
            self._became_ready.set()
            self._became_ready = anyio.Event()
        elif event is not HostEvent.SPAWN:
            self._link = None
            self._on_trial = None
            self.pairs.host_lost()
            self._lanes_before = {lane: gone.without_contents() for lane, gone in self.lanes.items()}
            self._prompt_caches_before = {model: gone.without_contents() for model, gone in self.prompt_caches.items()}
            self.stats = None
            self._was_lost.set()
            self._was_lost = anyio.Event()
            self.host_pid = None

    async def _serve(self, host: Host, tg: TaskGroup) -> None:
        said = host.said
        self.versions = said.versions
        self.host_pid = said.pid
        self._listens = False
        link = Link(host.stream, on_message=self._received, on_settled=self._settled)
        self._link = link
        link.send_soon(wire.Configure(dict(self._settings.lanes), self._settings.models))
        try:
            async with anyio.create_task_group() as serving:
                serving.start_soon(self._watch, host, link, tg)
                serving.start_soon(self.pairs.run)
                self.pairs.host_started(said.versions.memory_bytes, link.send_soon, self._ready_if_all_is_there)
                await link.run()
                serving.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():  # not the host's death: the router ends
            for generation in link.close():
                generation.end(_STOPPED(generation))
            raise
        finally:
            self._beat = host.page.read()
            self._happened(HostEvent.DIED)
            self._take_back(link)

    async def _watch(self, host: Host, link: Link, tg: TaskGroup) -> None:
        """Kill a host that does not get anywhere; have another one stand by, in time.

        Raises:
            HostDied: it was killed.
        """
        watchdog = Watchdog(self._usual_step, time.monotonic())
        ready_s: float | None = None
        wanted = self._settings.standby and self._spare is None
        while True:
            await anyio.sleep(TICK_S)
            now_s = time.monotonic()
            beat = host.page.read()
            signs = _cpu_s(host.process.pid) if beat.activity is Activity.LOAD else 0.0
            verdict = watchdog.observe(beat, heard=link.heard, signs=signs, now_s=now_s)
            if verdict is not None:
                send_signal(host.process, signal.SIGKILL)  # it may be stopped, and then nothing else reaches it
                raise HostDied(f"the host hung and was killed: {verdict}")
            if ready_s is None and self._state is HostState.READY:
                ready_s = now_s
            ready_for_s = now_s - ready_s if ready_s is not None else -1.0
            due = ready_for_s > (STAND_BY_AT_LAST_S if link.active else STAND_BY_AFTER_S)
            if wanted and ready_for_s >= 0 and (due or watchdog.doubtful):
                wanted = False  # once for each host: one that cannot start is not started over and over
                self._spare = self._begin(tg)

    def _died(self, why: str) -> None:
        """The last host is gone, and it is known why: who waits for the next, and what is that not to load?"""
        self.restarts += 1
        working = self._beat.activity in (Activity.LOAD, Activity.PREFILL, Activity.DECODE)
        suspect = next((spec.name for spec in self._settings.models if working and spec.name == self._beat.model), None)
        self.last_activity = str(self._beat) if suspect is not None else None
        cause = f"{why}, in {self.last_activity}" if self.last_activity is not None else why
        log.error("host lost: %s; %d requests wait for the next", cause, self.waiting)
        before = self.quarantined()
        self._restarts.died(suspect, self._fruitful, cause)
        for model, quarantine in self.quarantined().items():
            message = f"model {model} is {_quarantined(quarantine)}"
            if model not in before:
                log.error("%s", message)
            self.pairs.quarantine(model, quarantine.until_s, _quarantined(quarantine))
            self._end_waiting(_failed(wire.FailureCode.MODEL_UNAVAILABLE, message), model)
        if self._restarts.given_up:
            message = f"the engine does not come up: {why}"
            self.pairs.turn_away(message)
            self._end_waiting(_failed(HostDied.code, message))

    def _take_back(self, link: Link) -> None:
        """Its host is gone: its requests wait for the next, or end."""
        loading = self._beat.activity is Activity.LOAD
        for generation in link.close():
            generation.lost(on_trial=link.unsettled == {generation.request_id}, loading=loading)
            if not generation.ended:
                self._waiting.append(generation)

    def _send_waiting(self) -> None:
        """Those of the waiting whose turn it is go to the host, if there is one."""
        self._waiting = [generation for generation in self._waiting if not generation.ended]
        if self._link is None or self._link.closed or self._state is not HostState.READY:
            return
        unsettled, on_trial = len(self._link.unsettled), self._on_trial is not None
        for generation in next_up(self._waiting, unsettled=unsettled, on_trial=on_trial):
            self._waiting.remove(generation)
            if generation.history.suspect:
                self._on_trial = generation
            if generation.history.hosts:
                self.resumed += 1
            self._link.begin(generation)

    def _settled(self, generation: Generation) -> None:
        """A request has got going on this host, or has ended."""
        if generation.history.going:
            self._fruitful.add(generation.history.asked.model)
        if generation is self._on_trial:
            self._on_trial = None
        if self._waiting:
            self._send_waiting()

    def _end_waiting(self, end: Callable[[Generation], wire.Failed], model: str | None = None) -> None:
        waiting, self._waiting = self._waiting, []
        for generation in waiting:
            if generation.ended:
                continue
            if model is None or generation.history.asked.model == model:
                generation.end(end(generation))
            else:
                self._waiting.append(generation)

    def _ready_if_all_is_there(self) -> None:
        if self._listens and self._state is HostState.STARTING and not self.pairs.starting:
            self._happened(HostEvent.READY)
            self._send_waiting()

    def _received(self, message: wire.FromHost) -> None:
        match message:
            case wire.Ready() if not self._listens:
                self._listens = True
                self._ready_if_all_is_there()
            case wire.Stats():
                self.stats = message
            case _ if not self.pairs.received(message):
                raise WireError(f"unexpected {type(message).__name__} from the host")


def _failed(code: str, why: str) -> Callable[[Generation], wire.Failed]:
    return lambda generation: wire.Failed(generation.request_id, code, why)


_STOPPED: Final = _failed(HostDied.code, "the engine was stopped while it answered")


def _quarantined(quarantine: Quarantine) -> str:
    return f"in quarantine: {quarantine.deaths} engines died of it, the last one because {quarantine.cause}"


def _cpu_s(pid: int) -> float:
    """Processor time that a process has used; 0 if it is gone."""
    try:
        used = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf for exc in group.exceptions for leaf in (_leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc])
    ]
