"""Performs what the deciders decide: a slot from admission, a submission to the engine, its end.

:meth:`Dispatcher.answer` owns a request from its offer to its end. A slot, once confirmed, belongs to the request on
the host and is released by the host's last word on it, whether or not anybody still listens: the next request is
granted a slot that the device has really let go of.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
import msgspec

from lanes import wire
from lanes.client import OnProgress
from lanes.errors import (
    HostUnavailable,
    PairQueueFull,
    PairUnavailable,
    PairWaitedTooLong,
    RequestRefused,
)
from opta_router import errors
from opta_router.admission import Admission, Effect, MoveGranted, Rejected
from opta_router.answer import ENGINE_RETRY_S, MODEL_RETRY_S, Answer, Arrival, refusal
from opta_router.capability import capability
from opta_router.engine import Engine
from opta_router.identifiers import new_identifier
from opta_router.in_flight import InFlight
from opta_router.lane_queue import LaneLimits, LaneStats
from opta_router.placement import Placement
from opta_router.request import GenerationRequest
from opta_router.shedding import memory_shortage
from opta_router.speculation import Attempt, Speculation
from opta_router.tickets import Ask, Ticket
from policies.classify import Classification
from policies.errors import SpeculationUnsupported
from policies.schema import Config, LaneConfig, ModelConfig
from policies.speculation import SpecRequest

STOPPING_RETRY_S: Final = 10
DRAINING: Final = "the router takes no new requests"


class _Seat:
    """Where a waiting request hears what became of its ticket."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.decided = anyio.Event()
        self.rejected: Rejected | None = None

    def decide(self, rejected: Rejected | None) -> None:
        self.rejected = rejected
        self.decided.set()


class _TokenBudget:
    """An ``auto`` answer in the interactive lane: when it has had its tokens there, it goes on in the other lane.

    A multi-level feedback queue with two levels (Corbató, Merwin-Daggett, Daley, "An Experimental Time-Sharing System",
    1962): who turns out to want much is moved out of the way of who wants little, and nobody has to say beforehand.
    """

    def __init__(self, tokens: int, ask: Callable[[], None], moved: Callable[[wire.Moved], None]) -> None:
        self._tokens = tokens
        self._ask = ask
        self._moved = moved
        self._spent = False

    def progress(self, event: wire.Delta | wire.Moved) -> None:
        """Look at what the host sent."""
        if isinstance(event, wire.Moved):
            self._moved(event)
        elif not self._spent and event.index + len(event.token_ids) >= self._tokens:
            self._spent = True
            self._ask()


class Dispatcher:
    """One for each router. Everything happens on one event loop.

    Args:
        config: the configuration in force at the start; its models stay.
        engine: takes submissions.
        now_s: a monotonic clock.
    """

    def __init__(self, config: Config, engine: Engine, now_s: Callable[[], float] = time.monotonic) -> None:
        self._models = {model.name: model for model in config.models}
        self._engine = engine
        self._now_s = now_s
        self._admission = Admission(_limits(config))
        self._shed = config.memory.shed
        self.speculation = Speculation(config, now_s)
        self._seats: dict[Ticket, _Seat] = {}
        self._running: dict[Ticket, Answer] = {}
        self._placement = Placement()
        self._stopping = False

    def now_s(self) -> float:
        """The clock of :attr:`Arrival.arrived_s`."""
        return self._now_s()

    def configure(self, config: Config) -> None:
        """Take new bounds for slots and queues. Whoever runs or waits stays, and waits for as long as it was told."""
        self.speculation.configure(config)
        self._perform(self._admission.configure(_limits(config), self._now_s()))

    @property
    def draining(self) -> bool:
        """Whether new requests are turned away."""
        return self._admission.draining

    @property
    def stopping(self) -> bool:
        """Whether the router is about to end."""
        return self._stopping

    def drain(self) -> None:
        """Take no new requests, and turn away those that wait; those that run go on."""
        self._perform(self._admission.drain())
        self._engine.pairs.turn_away(DRAINING)

    def undrain(self) -> None:
        """Take requests again.

        Raises:
            Draining: the router is about to stop.
        """
        if self._stopping:
            raise errors.Draining("the router is about to stop", retry_after_s=STOPPING_RETRY_S)
        self._admission.undrain()

    def stop(self) -> None:
        """Drain, for good."""
        self._stopping = True
        self.drain()

    def stats(self) -> dict[wire.Lane, LaneStats]:
        """Slots and queues of each lane, now."""
        return self._admission.stats()

    def in_flight(self) -> list[InFlight]:
        """Requests that wait for a slot, and those that have one."""
        waiting = [
            InFlight(trace=seat.arrival.trace, model=seat.arrival.verdict.model, lane=ticket.lane, stage="queued")
            for ticket, seat in self._seats.items()
            if not seat.decided.is_set()
        ]
        return waiting + [answer.in_flight(ticket.lane) for ticket, answer in self._running.items()]

    def not_ready_reasons(self) -> list[str]:
        """Why no request would be taken now; empty if one would."""
        reasons = self._engine.not_ready_reasons()
        if self._admission.draining:
            reasons = [*reasons, "draining"]
        shortage = self.memory_shortage()
        if shortage is not None:
            reasons = [*reasons, f"shedding: {shortage}"]
        failures = self._engine.pairs.failures()
        if self._models and failures.keys() >= self._models.keys():
            reasons = [*reasons, *(f"model {name}: {why}" for name, why in failures.items())]
        return reasons

    def memory_shortage(self) -> str | None:
        """Why new requests are turned away for the device's memory; None if they are not."""
        stats = self._engine.stats
        used_bytes = stats.active_memory_bytes if stats is not None else 0
        return memory_shortage(used_bytes, self._engine.memory_bytes, self._shed, running=len(self._running))

    def placed(self, request: GenerationRequest, verdict: Classification) -> Classification:
        """``verdict`` with the model that is to answer, where several share the name that was asked for."""
        pairs = self._engine.pairs
        resident = tuple(name for name in verdict.candidates if name in pairs.loaded)
        loadable = tuple(name for name in verdict.candidates if pairs.refusal(name) is None)
        candidates = resident or loadable or (verdict.model,)
        model = self._placement.choose(candidates, request.prompt, request.estimated_work(verdict.preset))
        return msgspec.structs.replace(verdict, model=model)

    @asynccontextmanager
    async def answer(self, arrival: Arrival) -> AsyncIterator[Answer]:
        """Wait for a slot and start the request; on leaving, take it off the device if it still runs.

        Raises:
            RouterError: it was not accepted.
        """
        work = arrival.request.estimated_work(arrival.verdict.preset)
        self._placement.begin(arrival.verdict.model, work)
        try:
            async with self._answered(arrival) as answer:
                yield answer
        finally:
            self._placement.end(arrival.verdict.model, work)

    @asynccontextmanager
    async def _answered(self, arrival: Arrival) -> AsyncIterator[Answer]:
        model = self._models[arrival.verdict.model]
        self._require_engine()
        self._admission.shed(self.memory_shortage() is not None)
        if model.name not in self._engine.pairs.loaded:
            arrival.trace.queued()  # a load is a wait, too
        async with (
            self._resident(arrival, model.name) as timeout_s,
            self._submitted(msgspec.structs.replace(arrival, timeout_s=timeout_s), model) as answer,
        ):
            yield answer

    @asynccontextmanager
    async def _resident(self, arrival: Arrival, model: str) -> AsyncIterator[float | None]:
        """Hold the model, before any slot: who waits for a load keeps nobody else from running.

        Gives the :attr:`Arrival.timeout_s` that is left. It is left when the host has been told to forget the request:
        what it is told next may be to unload.
        """
        if self._admission.draining or self._admission.shedding:
            yield None  # admission turns it away
            return
        lanes = arrival.config.lanes
        lane: LaneConfig = lanes.interactive if arrival.verdict.lane == "interactive" else lanes.throughput
        asked_s = self._now_s()
        patience_s = min(float(lane.queue_timeout), math.inf if arrival.timeout_s is None else arrival.timeout_s)
        try:
            async with self._engine.pairs.leased(model, patience_s, lane.max_queue) as waited:
                yield asked_s + patience_s - self._now_s() if waited else arrival.timeout_s
        except PairUnavailable as exc:
            if self._admission.draining:
                raise errors.Draining(DRAINING, retry_after_s=ENGINE_RETRY_S) from exc
            raise errors.ModelUnavailable(str(exc), retry_after_s=MODEL_RETRY_S) from exc
        except PairWaitedTooLong as exc:
            raise errors.DeadlineExceeded(str(exc), retry_after_s=ENGINE_RETRY_S) from exc
        except PairQueueFull as exc:
            raise errors.QueueFull(str(exc), retry_after_s=ENGINE_RETRY_S) from exc

    @asynccontextmanager
    async def _submitted(self, arrival: Arrival, model: ModelConfig) -> AsyncIterator[Answer]:
        ticket = await self._granted(arrival)
        attempt: Attempt | None = None
        answer: Answer | None = None

        def over(event: wire.Finished | wire.Failed | None) -> None:
            if attempt is not None:
                attempt.over(event)
            self._release(ticket)
            if answer is not None and event is not None:
                answer.settle(event)

        # From here to the submission nothing waits, so nothing can be cancelled with the slot in hand.
        try:
            lane = ticket.lane  # of the admission: speculation is decided there, wherever the answer goes on
            attempt = self._attempt(arrival, lane, model)
            answer = Answer(arrival, ticket, self._now_s, attempt.decision)
            submit = arrival.request.submission(
                new_identifier(), model.name, ticket.lane, arrival.verdict.preset, answer.max_draft_tokens
            )
            budget = self._token_budget(arrival, ticket, submit, answer)
            self._running[ticket] = answer
            generation = self._engine.submit(submit, over, budget, answer.interruption)
        except BaseException as exc:
            over(None)
            if isinstance(exc, HostUnavailable):
                raise errors.EngineUnavailable(str(exc), retry_after_s=ENGINE_RETRY_S) from exc
            if isinstance(exc, RequestRefused):
                raise refusal(exc, arrival.request) from exc
            raise
        try:
            answer.attach(generation)
            arrival.trace.dispatched(answer.usage)
            yield answer
        finally:
            generation.cancel()

    def _require_engine(self) -> None:
        if self._admission.draining:
            return  # admission says so, and with which Retry-After
        reasons = self._engine.refusals()
        if reasons:
            raise errors.EngineUnavailable("; ".join(reasons), retry_after_s=ENGINE_RETRY_S)

    async def _granted(self, arrival: Arrival) -> Ticket:
        """A confirmed ticket: its slot is ours to release.

        Raises:
            NotNow: there is no slot, and no place to wait for one.
        """
        ticket, effects = self._admission.offer(_ask(arrival), self._now_s())
        seat = self._seats[ticket] = _Seat(arrival)
        arrival.trace.queued()
        try:
            self._perform(effects)
            while not seat.decided.is_set():
                with anyio.move_on_after(ticket.deadline_s - self._now_s()):
                    await seat.decided.wait()
                if not seat.decided.is_set():
                    self._perform(self._admission.expire(self._now_s()))
            if seat.rejected is not None:
                raise _not_now(seat.rejected, self.memory_shortage())
            self._admission.confirm(ticket)
        finally:
            del self._seats[ticket]
            self._perform(self._admission.withdraw(ticket, self._now_s()))
        arrival.trace.admitted(ticket.lane, ticket.route)
        return ticket

    def _token_budget(self, arrival: Arrival, ticket: Ticket, submit: wire.Submit, answer: Answer) -> OnProgress | None:
        tokens = arrival.config.lanes.interactive.demote_after_tokens
        chosen_by_us = arrival.verdict.lane == "auto" and ticket.lane == "interactive"
        if not chosen_by_us or tokens is None or submit.max_tokens <= tokens:
            return None

        def moved(event: wire.Moved) -> None:
            if event.lane != ticket.lane:
                answer.moved(event)
            self._perform(self._admission.moved(ticket, event.lane, self._now_s()))

        def ask() -> None:
            self._perform(self._admission.move(ticket, "throughput", self._now_s()))

        return _TokenBudget(tokens, ask, moved).progress

    def _release(self, ticket: Ticket) -> None:
        self._running.pop(ticket, None)
        self._perform(self._admission.release(ticket, self._now_s()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, MoveGranted):
                self._running[effect.ticket].move(effect.lane)
                continue
            seat = self._seats.get(effect.ticket)
            if seat is not None:
                seat.decide(effect if isinstance(effect, Rejected) else None)

    def _attempt(self, arrival: Arrival, lane: wire.Lane, model: ModelConfig) -> Attempt:
        asked = SpecRequest(arrival.request.num_draft_tokens)
        pair = capability(model, self._engine.pairs.facts.get(model.name))
        try:
            return self.speculation.begin(model.name, asked, lane, pair, arrival.config)
        except SpeculationUnsupported as exc:
            raise errors.ModelUnavailable(str(exc), retry_after_s=MODEL_RETRY_S) from exc


def _limits(config: Config) -> dict[wire.Lane, LaneLimits]:
    lanes: Mapping[wire.Lane, LaneConfig] = {
        "interactive": config.lanes.interactive,
        "throughput": config.lanes.throughput,
    }
    return {
        name: LaneLimits(lane.max_active, lane.max_queue, float(lane.queue_timeout), lane.spill)
        for name, lane in lanes.items()
    }


def _ask(arrival: Arrival) -> Ask:
    verdict = arrival.verdict
    ask = Ask(
        lane=verdict.lane,
        route=verdict.route,
        sub_client=arrival.sub_client,
        timeout_s=arrival.timeout_s,
        auto=arrival.request.auto_facts(verdict.preset),
        auto_rules=arrival.config.routing.auto,
    )
    client = verdict.client
    if client is None:
        return ask
    return msgspec.structs.replace(
        ask, client=client.name, client_weight=client.weight, client_max_active=client.max_active
    )


def _not_now(rejected: Rejected, shortage: str | None) -> errors.NotNow:
    lane, retry_s = rejected.ticket.lane, rejected.retry_after_s
    match rejected.code:
        case "queue_full":
            return errors.QueueFull(f"the {lane} lane's queue is full", retry_after_s=retry_s)
        case "deadline":
            late = "the request's turn does not come within the time that the lane, or the client, allows"
            return errors.DeadlineExceeded(f"the {lane} lane is busy: {late}", retry_after_s=retry_s)
        case "draining":
            return errors.Draining(DRAINING, retry_after_s=retry_s)
        case "shedding":
            return errors.Shedding(shortage or "the device's memory was nearly full", retry_after_s=retry_s)
