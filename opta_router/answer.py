"""A request as it came, and its answer as it comes in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from lanes import wire
from lanes.client import Generation
from lanes.errors import HostDied, PoisonRequest, RequestRefused
from lanes.resumption import Interruption, Resumed
from opta_router import errors
from opta_router.in_flight import InFlight
from opta_router.request import Demotion, Ending, GenerationRequest, OptaReport, SpeculativeReport, Usage
from opta_router.telemetry import RequestTrace
from opta_router.tickets import Ticket
from policies.classify import Classification
from policies.schema import Config
from policies.speculation import SpecDecision

ENGINE_RETRY_S: Final = 5
"""What a client is told to wait while the engine starts: a small model's load, or a restart."""

MODEL_RETRY_S: Final = 60


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A classified request. ``arrived_s`` is the dispatcher's clock when its headers were in.

    ``config`` was in force then, and is this request's to its end. ``timeout_s`` is how long, from then, the client
    would wait for its turn; None: as long as the lane allows.
    """

    request: GenerationRequest
    config: Config
    verdict: Classification
    sub_client: str
    trace: RequestTrace
    arrived_s: float
    timeout_s: float | None = None


class Answer:
    """One running request: :meth:`started`, then :meth:`text` until it says None, then :attr:`ending` stands."""

    def __init__(self, arrival: Arrival, ticket: Ticket, now_s: Callable[[], float], decision: SpecDecision) -> None:
        self.lane = ticket.lane
        self.route = ticket.route
        self.ending: Ending | None = None
        self.drafted: tuple[wire.Span, ...] = ()
        """Of the text that :meth:`text` gave last, what was drafted; for a request with ``include_drafted``."""
        self._arrival = arrival
        self._now_s = now_s
        self._decision = decision
        self._queue_ms = self._elapsed_ms()
        self._ttft_ms: float | None = None
        self._demoted: Demotion | None = None
        self._resumed = 0
        self._pending: list[wire.Event] = []
        self._generation: Generation | None = None

    @property
    def max_draft_tokens(self) -> int:
        """Bound of a speculative round; 0: none."""
        return self._decision.max_draft_tokens

    def attach(self, generation: Generation) -> None:
        """The request is on its way to the host."""
        self._generation = generation

    def usage(self) -> Usage:
        """What it has used so far. On any thread."""
        if self._generation is None:
            return Usage(prompt_tokens=0, completion_tokens=0)
        history = self._generation.history
        return Usage(prompt_tokens=history.prompt_tokens, completion_tokens=history.emitted_tokens)

    def in_flight(self, lane: wire.Lane) -> InFlight:
        """How far it is, in ``lane``."""
        return InFlight(
            trace=self._arrival.trace,
            model=self._arrival.verdict.model,
            lane=lane,
            stage="running",
            emitted_tokens=self.usage().completion_tokens,
            speculative=self._generation.history.speculative if self._generation is not None else None,
        )

    def settle(self, last: wire.Finished | wire.Failed) -> None:
        """The host has let go of it."""
        usage = self.usage()
        if isinstance(last, wire.Finished):
            usage = Usage(
                prompt_tokens=last.prompt_tokens,
                completion_tokens=max(last.completion_tokens, usage.completion_tokens),  # a counter never goes back
            )
        self._arrival.trace.settled(usage)

    def move(self, lane: wire.Lane) -> None:
        """There is room in another lane: the host may take it there."""
        if self._generation is not None:
            self._generation.move(lane)

    def moved(self, event: wire.Moved) -> None:
        """The host has."""
        self._demoted = Demotion(event.lane, event.completion_tokens)
        self._arrival.trace.demoted(event.lane, event.completion_tokens)

    def interruption(self, event: Interruption) -> None:
        """Its host is gone, or another one goes on with it: the answer pauses, and that is all."""
        if isinstance(event, Resumed):
            self._resumed += 1
            self._arrival.trace.resumed(event.emitted_tokens)
        else:
            self._arrival.trace.interrupted()

    async def started(self) -> None:
        """Return when the host has taken the prompt: from here on, errors are rare.

        Raises:
            RouterError: the host refused it.
        """
        self._pending = await self._receive()

    async def text(self) -> str | None:
        """All text that has come in and was not yet given out (it may be empty); None after the end.

        Raises:
            RouterError: the engine failed.
        """
        if self.ending is not None:
            return None
        events, self._pending = self._pending or await self._receive(), []
        pieces: list[str] = []
        self.drafted = ()
        for event in events:
            match event:
                case wire.Delta():
                    self._mark(sum(map(len, pieces)), event.drafted)
                    pieces.append(event.text)
                    self._first_token()
                case wire.Finished():
                    self.ending = Ending(event, self._report(event))
        return "".join(pieces)

    def report(self) -> OptaReport:
        """What can be said of the request before its end."""
        return self._report(None)

    async def _receive(self) -> list[wire.Event]:
        if self._generation is None:
            raise RuntimeError("not submitted")
        try:
            return await self._generation.receive()
        except HostDied as exc:
            raise errors.EngineDied(str(exc), retry_after_s=ENGINE_RETRY_S) from exc
        except RequestRefused as exc:
            raise refusal(exc, self._arrival.request) from exc

    def _mark(self, offset: int, drafted: tuple[wire.Span, ...]) -> None:
        if drafted:
            self.drafted += tuple((begin + offset, end + offset) for begin, end in drafted)

    def _first_token(self) -> None:
        if self._ttft_ms is None:
            self._ttft_ms = self._elapsed_ms()
            self._arrival.trace.first_token()

    def _elapsed_ms(self) -> float:
        return round((self._now_s() - self._arrival.arrived_s) * 1000, 2)

    def _report(self, finished: wire.Finished | None) -> OptaReport:
        return OptaReport(
            lane=self.lane,
            route=self.route,
            queue_ms=self._queue_ms,
            ttft_ms=self._ttft_ms,
            resumed=self._resumed,
            hint_ignored=self._arrival.verdict.hint_ignored,
            demoted=self._demoted,
            speculative=self._spec_report(finished.speculative if finished is not None else None),
        )

    def _spec_report(self, counters: wire.SpecCounters | None) -> SpeculativeReport:
        decision = self._decision
        if counters is None:
            return SpeculativeReport(
                requested=decision.requested,
                active=decision.active,
                reason=decision.reason,
                telemetry="unavailable" if decision.active else None,
            )
        return SpeculativeReport.of(
            counters, requested=decision.requested, active=decision.active, reason=decision.reason
        )


def refusal(exc: RequestRefused, request: GenerationRequest) -> errors.RouterError:
    """The host's refusal of ``request``, in the router's words."""
    field = "messages" if request.operation == "chat" else "prompt"
    match exc.code:
        case wire.FailureCode.CONTEXT_LENGTH_EXCEEDED:
            return errors.InvalidRequest("context_length_exceeded", str(exc), param=field)
        case wire.FailureCode.INVALID_PROMPT:
            return errors.InvalidRequest("invalid_prompt", str(exc), param=field)
        case wire.FailureCode.MODEL_UNAVAILABLE:
            return errors.ModelUnavailable(str(exc), retry_after_s=MODEL_RETRY_S)
        case PoisonRequest.code:
            return errors.PoisonRequest(str(exc))
        case _:
            return errors.EngineFault("the engine failed this request; the router's log says why")
