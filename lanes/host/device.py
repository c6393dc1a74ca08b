"""The device thread: everything that touches arrays, one bounded step after the other.

MLX streams belong to the thread that made them, so loading, prefill, decode and unloading all happen here.
Commands come in through a queue, reports go out through a callback; nothing else is shared.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from lanes import wire
from lanes.engines.base import Adopting, Emission, Engine, Releasing, SequenceSpec
from lanes.fair_share import FairShare
from lanes.heartbeat import Heartbeat
from lanes.host import loader
from lanes.host.loader import Loader
from lanes.host.pipeline import Pipeline
from lanes.host.residents import Resident

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1.0

PRESENCE_S: Final = 5.0
"""How long a lane that has had work is expected back: a person reads an answer, and asks again."""


class Add(msgspec.Struct, frozen=True):
    """Start a sequence on a resident model."""

    lane: wire.Lane
    model: str
    sequence: SequenceSpec


class Cancel(msgspec.Struct, frozen=True):
    """Forget a sequence."""

    request_id: str


class Move(msgspec.Struct, frozen=True):
    """Let a sequence go on in another lane."""

    request_id: str
    lane: wire.Lane


class SetLanes(msgspec.Struct, frozen=True):
    """New weights."""

    lanes: Mapping[wire.Lane, wire.LaneSpec]


class Stop(msgspec.Struct, frozen=True):
    """End the thread."""


Command = loader.Order | loader.LimitPromptCaches | Add | Cancel | Move | SetLanes | Stop


class Moved(msgspec.Struct, frozen=True):
    """Where a sequence is after :class:`Move`."""

    request_id: str
    lane: wire.Lane


Report = Emission | Moved | loader.Report | wire.Stats


class DeviceThread:
    """Owns the device.

    Args:
        lanes: the lanes and their settings.
        publish: called on this thread with what a step brought; must not block.
        heartbeat: told what the thread begins.
    """

    def __init__(
        self,
        lanes: Mapping[wire.Lane, wire.LaneSpec],
        publish: Callable[[list[Report]], None],
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._lanes = dict(lanes)
        self._arbiter: FairShare[wire.Lane] = FairShare({lane: spec.weight for lane, spec in lanes.items()})
        self._publish = publish
        self._heart = heartbeat if heartbeat is not None else Heartbeat()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._loader = Loader(self._lanes)
        self._residents = self._loader.residents
        self._engines: dict[str, Engine] = {}
        self._stats_of: dict[wire.Lane, wire.LaneStats] = dict.fromkeys(lanes, wire.LaneStats())
        self._steps: dict[wire.Lane, int] = dict.fromkeys(lanes, 0)
        self._stepped_s: dict[wire.Lane, float] = {}
        self._expected_s: dict[wire.Lane, float] = dict.fromkeys(lanes, 0.0)
        self._pipeline = Pipeline()
        self._heartbeat_due_s = 0.0
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Start the thread; commands may be sent before."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """Queue a command; it takes effect before the next step. Thread-safe."""
        self._commands.put(command)

    def join(self, timeout_s: float) -> None:
        """Wait for the end after :class:`Stop`."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._obey():
            lane = self._arbiter.select(self._backlogged())
            if lane is not None:
                self._step(lane)
            if lane is None or self._loader.busy:
                self._finish_all()  # a piece of a load is nobody's step
            if self._loader.busy:
                self._heart.loading(self._loader.loading)
                self._report(self._loader.advance(others_wait=lane is not None))
            self._heartbeat()

    def _obey(self) -> bool:
        """Apply all queued commands; without work, wait for one. False when the thread is to end."""
        idle = not self._backlogged() and not self._pipeline and not self._loader.busy
        while True:
            if idle:
                self._heart.idle()
            try:
                command = self._commands.get(block=idle, timeout=HEARTBEAT_S)
            except queue.Empty:
                return True
            if isinstance(command, Stop):
                return False
            try:
                self._apply(command)
            except Exception:
                log.exception("%s failed", type(command).__name__)
            idle = False

    def _apply(self, command: Command) -> None:
        if not isinstance(command, Add | SetLanes):
            self._finish_all()  # it changes what a step may be at work on
        match command:
            case loader.Unload(name):
                self._end_all_of(name)
                self._obey_order(command)
            case loader.Prepare() | loader.Load():
                self._obey_order(command)
            case Add(lane, model, sequence):
                self._add(lane, model, sequence)
            case Cancel(request_id):
                engine = self._engines.pop(request_id, None)
                if engine is not None:
                    engine.cancel(request_id)
                    self._heart.left(request_id)
                    self._publish([Emission(request_id, finish="cancelled")])
            case Move(request_id, lane):
                self._move(request_id, lane)
            case loader.LimitPromptCaches(max_bytes):
                self._loader.limit_prompt_caches(max_bytes)
            case SetLanes(lanes):
                self._lanes.update(lanes)
                for lane, settings in lanes.items():
                    self._arbiter.set_weight(lane, settings.weight)

    def _add(self, lane: wire.Lane, model: str, sequence: SequenceSpec) -> None:
        resident = self._residents.get(model)
        if resident is None:
            self._publish([Emission(sequence.request_id, error=f"model {model!r} is not resident")])
            return
        try:
            engine = resident.engines[lane]
            engine.add(sequence)
        except Exception as exc:
            log.exception("request %s could not be started", sequence.request_id)
            self._publish([Emission(sequence.request_id, error=f"could not be started: {exc}")])
        else:
            self._engines[sequence.request_id] = engine
            self._heart.added(sequence.request_id, engine)

    def _move(self, request_id: str, lane: wire.Lane) -> None:
        engine = self._engines.get(request_id)
        if engine is None:
            return  # it has ended
        engines = next(r.engines for r in self._residents.values() if engine in r.engines.values())
        target = engines[lane]
        if target is not engine and isinstance(engine, Releasing) and isinstance(target, Adopting):
            handover = engine.release(request_id)
            if handover is not None:
                target.adopt(handover)
                self._engines[request_id] = target
        here = next(name for name, owner in engines.items() if owner is self._engines[request_id])
        self._publish([Moved(request_id, here)])

    def _obey_order(self, order: loader.Order) -> None:
        self._heart.loading(order.model)
        self._report(self._loader.obey(order))

    def _report(self, reports: list[loader.Report]) -> None:
        if reports:
            self._publish([*reports])

    def _backlogged(self) -> list[wire.Lane]:
        return [lane for lane in self._lanes if any(r.engines[lane].has_work() for r in self._residents.values())]

    def _step(self, lane: wire.Lane) -> None:
        """Start a step of ``lane`` behind the one that is under way; or wait for that, if it must be over first."""
        resident = self._turn(lane)
        engine = resident.engines[lane]
        limit_s = self._limit_s(lane, time.perf_counter())
        if not self._pipeline.may_start(engine, limit_s):
            self._finish()
            return
        resident.last_step[lane] = self._steps[lane]
        self._steps[lane] += 1
        # What the step costs is known when it is over: until then it counts as the one before it.
        expected_s = self._expected_s[lane]
        self._arbiter.expect(lane, expected_s)
        model = resident.info.name
        self._heart.stepping(lane, model, engine)
        try:
            emissions = self._pipeline.start(lane, model, engine, limit_s=limit_s, expected_s=expected_s)
        except Exception as exc:
            self._arbiter.charge(lane, 0.0, expected_s)
            emissions = self._failed(lane, engine, exc)
        self._give(lane, engine, emissions)
        if len(self._pipeline) > 1:
            self._finish()

    def _finish(self) -> None:
        """Wait for the oldest step, charge its lane, and report what it brought."""
        lane, model, engine, limit_s, _, expected_s = self._pipeline.oldest()
        self._heart.waiting(lane, model, engine)
        started_s = time.perf_counter()
        try:
            emissions, cost_s = self._pipeline.finish()
        except Exception as exc:
            emissions = self._failed(lane, engine, exc)
            cost_s = time.perf_counter() - started_s
        self._arbiter.charge(lane, cost_s, expected_s)
        self._expected_s[lane] = cost_s
        self._stats_of[lane] += wire.LaneStats(
            device_s=cost_s,
            bounded_steps=int(limit_s is not None),
            late_steps=int(limit_s is not None and cost_s > limit_s),
        )
        self._stepped_s[lane] = time.perf_counter()
        self._give(lane, engine, emissions)

    def _finish_all(self) -> None:
        while self._pipeline:
            self._finish()

    def _give(self, lane: wire.Lane, engine: Engine, emissions: list[Emission]) -> None:
        self._heart.stepped(lane, engine, emissions)
        for emission in emissions:
            if emission.finish is not None or emission.error is not None:
                self._engines.pop(emission.request_id, None)
        if emissions:
            self._publish([*emissions])

    def _limit_s(self, lane: wire.Lane, now_s: float) -> float | None:
        """The lane's bound if somebody of another lane is there: has work, or had some a moment ago."""
        others_s = (stepped_s for other, stepped_s in self._stepped_s.items() if other != lane)
        there = len(self._backlogged()) > 1 or any(now_s - stepped_s < PRESENCE_S for stepped_s in others_s)
        return self._lanes[lane].max_step_s if there else None

    def _turn(self, lane: wire.Lane) -> Resident:
        """The model of ``lane`` that has waited longest for its step."""
        waiting = [r for r in self._residents.values() if r.engines[lane].has_work()]
        return min(waiting, key=lambda r: r.last_step[lane])

    def _failed(self, lane: wire.Lane, engine: Engine, exc: Exception) -> list[Emission]:
        log.error("a step of the %s lane failed", lane, exc_info=exc)
        return self._end_all_on(engine, f"{type(exc).__name__}: {exc}")

    def _end_all_on(self, engine: Engine, why: str) -> list[Emission]:
        failed = [request_id for request_id, owner in self._engines.items() if owner is engine]
        engine.close()
        self._pipeline.drop(engine)
        return [Emission(request_id, error=why) for request_id in failed]

    def _end_all_of(self, model: str) -> None:
        """Requests have ended before their model is unloaded; if one has not, it ends with it, and hears of it."""
        resident = self._residents.get(model)
        engines = resident.engines if resident is not None else {}
        for lane, engine in engines.items():
            self._give(lane, engine, self._end_all_on(engine, f"model {model!r} was unloaded"))

    def _heartbeat(self) -> None:
        now_s = time.monotonic()
        if now_s < self._heartbeat_due_s:
            return
        self._heartbeat_due_s = now_s + HEARTBEAT_S
        self._publish([self._stats()])

    def _stats(self) -> wire.Stats:
        active_bytes, peak_bytes = self._loader.memory()
        return wire.Stats(
            steps=sum(self._steps.values()),
            lanes={
                lane: msgspec.structs.replace(
                    self._stats_of[lane],
                    steps=self._steps[lane],
                    active=sum(r.engines[lane].active() for r in self._residents.values()),
                )
                for lane in self._lanes
            },
            active_memory_bytes=active_bytes,
            peak_memory_bytes=peak_bytes,
            prompt_caches=self._loader.prompt_memory.stats(),
        )
