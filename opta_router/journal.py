"""The last requests and those in flight, with their moments: what an operator sees of single requests.

Kept in memory, bounded, and about nothing that a client wrote: no prompt, no answer, no error's text. A request costs a
few timestamps; nothing here is done per token.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec

from lanes.wire import Finished
from lanes.wire import Lane as DeviceLane
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry import NO_TRACE, RequestTrace
from opta_router.telemetry.histograms import Identity
from policies.classify import Classification

MAX_ENDED: Final = 100
MAX_MOMENTS: Final = 64
"""Of one request: a handful, and two for each host that died under it."""

Outcome: TypeAlias = Literal["finished", "failed", "cancelled"]


class Moment(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to a request, ``at_ms`` after it came in. ``tokens``: of its answer, until then."""

    name: str
    at_ms: float
    lane: str | None = None
    tokens: int | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. ``arrived_s`` is in seconds of the Unix epoch; ``seq`` counts the entries, in the order of arrival.

    ``lane`` is first what the rules chose, which may be ``auto``, then where it was admitted. ``opta`` is its answer's.
    ``code``: of the error that it failed with.
    """

    seq: int
    request_id: str
    model: str
    lane: str
    route: str
    arrived_s: float
    operation: str
    stream: bool
    client: str | None = None
    sub_client: str | None = None
    hint: str | None = None
    preset: str | None = None
    draft: str | None = None
    max_tokens: int | None = None
    moments: list[Moment]
    outcome: Outcome | None = None
    finish_reason: str | None = None
    code: str | None = None
    status: int | None = None
    duration_ms: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    opta: OptaReport | None = None


class Ended:
    """A request that is over. ``order`` counts the ends."""

    __slots__ = ("_encoded", "_watched", "order")

    def __init__(self, order: int, watched: WatchedTrace) -> None:
        self.order = order
        self._watched = watched
        self._encoded: bytes | None = None

    @property
    def entry(self) -> Entry:
        """What is known of it."""
        return self._watched.entry()

    @property
    def encoded(self) -> bytes:
        """JSON of :attr:`entry`, made at the first look."""
        if self._encoded is None:
            self._encoded = msgspec.json.encode(self.entry)
        return self._encoded

    @property
    def looked_at(self) -> bool:
        """Whether anybody has."""
        return self._encoded is not None


class Journal:
    """One for each router, on its event loop.

    Args:
        now_s: a monotonic clock.
        wall_s: seconds of the Unix epoch.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic, wall_s: Callable[[], float] = time.time) -> None:
        self.now_s = now_s
        self._wall_s = wall_s
        self._open: dict[WatchedTrace, None] = {}
        self._ended: deque[Ended] = deque(maxlen=MAX_ENDED)
        self._arrived = 0
        self.ends = 0

    def watched(self, trace: RequestTrace) -> RequestTrace:
        """``trace``, with this journal listening."""
        return WatchedTrace(self, trace)

    def ended_after(self, order: int) -> list[Ended]:
        """Whoever ended after the ``order``-th end, oldest first, as far as the journal reaches back."""
        missing = min(self.ends - order, len(self._ended))
        return list(islice(self._ended, len(self._ended) - missing, None))

    def in_flight(self) -> list[WatchedTrace]:
        """Requests that have not ended, oldest first."""
        return list(self._open)

    def stats(self) -> dict[str, int]:
        """How many requests are kept."""
        return {"open": len(self._open), "ended": len(self._ended)}

    def wall_s_at(self, at_s: float) -> float:
        """Seconds of the Unix epoch at a time of the journal's clock."""
        return self._wall_s() - (self.now_s() - at_s)

    def begin(self, trace: WatchedTrace) -> int:
        """A request has become one that can be named. Returns its number."""
        self._arrived += 1
        self._open[trace] = None
        return self._arrived

    def end(self, trace: WatchedTrace) -> None:
        """It is over."""
        self.ends += 1
        del self._open[trace]
        self._ended.append(Ended(self.ends, trace))


class _Asked(NamedTuple):
    """What was asked, without any of its text."""

    seq: int
    request_id: str
    verdict: Classification
    operation: str
    stream: bool
    max_tokens: int | None
    sub_client: str
    draft: str | None


class WatchedTrace(RequestTrace):
    """Tells the trace that it stands for what it is told, and keeps it for the journal.

    A request costs a few appends; an :class:`Entry` is made of them when somebody looks.
    """

    __slots__ = (
        "_admitted",
        "_asked",
        "_begun_s",
        "_code",
        "_dispatched",
        "_ended_s",
        "_finished",
        "_inner",
        "_journal",
        "_moments",
        "_now_s",
        "_opta",
        "_outcome",
        "_responded",
        "_status",
        "_usage",
    )

    def __init__(self, journal: Journal, inner: RequestTrace) -> None:
        self._journal = journal
        self._now_s = journal.now_s
        self._inner = inner
        self._begun_s = self._now_s()
        self._asked: _Asked | None = None
        self._admitted: tuple[DeviceLane, str] | None = None
        self._moments: list[tuple[str, float, str | None, int | None]] = []
        self._outcome: Outcome | None = None
        self._ended_s = 0.0
        self._code: str | None = None
        self._status: int | None = None
        self._dispatched = self._responded = False
        self._opta: OptaReport | None = None
        self._finished: Finished | None = None
        self._usage: Usage | None = None

    @property
    def records_content(self) -> bool:
        """See :class:`RequestTrace`."""
        return self._inner.records_content

    @property
    def identity(self) -> Identity | None:
        """See :class:`RequestTrace`."""
        return self._inner.identity

    @property
    def age_s(self) -> float:
        """How long ago it came in."""
        return self._now_s() - self._begun_s

    def entry(self) -> Entry:
        """What is known of it. It must have been classified."""
        if self._asked is None:
            raise RuntimeError("not classified")
        asked, finished = self._asked, self._finished
        usage = finished if finished is not None else self._usage
        verdict = asked.verdict
        lane, route = self._admitted or (verdict.lane, verdict.route)
        return Entry(
            seq=asked.seq,
            request_id=asked.request_id,
            model=verdict.model,
            lane=lane,
            route=route,
            arrived_s=self._journal.wall_s_at(self._begun_s),
            operation=asked.operation,
            stream=asked.stream,
            client=verdict.client.name if verdict.client is not None else None,
            sub_client=asked.sub_client or None,
            hint=verdict.hint,
            preset=verdict.preset.name if verdict.preset is not None else None,
            draft=asked.draft,
            max_tokens=asked.max_tokens,
            moments=[Moment(name, self._ms(at_s), lane, tokens) for name, at_s, lane, tokens in self._moments],
            outcome=self._outcome,
            finish_reason=finished.reason if finished is not None else None,
            code=self._code,
            status=self._status,
            duration_ms=self._ms(self._ended_s) if self._outcome is not None else None,
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            cached_tokens=finished.cached_tokens if finished is not None else None,
            completion_tokens=usage.completion_tokens if usage is not None else None,
            opta=self._opta,
        )

    def classified(
        self,
        request: GenerationRequest,
        verdict: Classification,
        *,
        request_id: str,
        sub_client: str = "",
        draft_model: str | None = None,
    ) -> None:
        """See :class:`RequestTrace`."""
        if self._asked is None:
            seq = self._journal.begin(self)
            self._asked = _Asked(
                seq,
                request_id,
                verdict,
                request.operation,
                request.stream,
                request.max_tokens,
                sub_client,
                draft_model,
            )
        self._inner.classified(request, verdict, request_id=request_id, sub_client=sub_client, draft_model=draft_model)

    def queued(self) -> None:
        """See :class:`RequestTrace`."""
        self._moment("queued")
        self._inner.queued()

    def admitted(self, lane: DeviceLane, route: str) -> None:
        """See :class:`RequestTrace`."""
        self._moment("admitted", lane)
        self._admitted = lane, route
        self._inner.admitted(lane, route)

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """See :class:`RequestTrace`."""
        self._dispatched = True
        self._moment("dispatched")
        self._inner.dispatched(read_usage)

    def first_token(self) -> None:
        """See :class:`RequestTrace`."""
        self._moment("first_token")
        self._inner.first_token()

    def demoted(self, lane: DeviceLane, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._moment("demoted", lane, emitted_tokens)
        self._inner.demoted(lane, emitted_tokens)

    def interrupted(self) -> None:
        """See :class:`RequestTrace`."""
        self._moment("interrupted")
        self._inner.interrupted()

    def resumed(self, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._moment("resumed", None, emitted_tokens)
        self._inner.resumed(emitted_tokens)

    def settled(self, usage: Usage) -> None:
        """See :class:`RequestTrace`."""
        self._usage = usage
        inner = self._inner
        self._let_go()
        inner.settled(usage)

    def finished(self, ending: Ending, text: str = "") -> None:
        """See :class:`RequestTrace`."""
        if self._outcome is None:
            self._finished = ending.finished
        self._over("finished", None, ending.opta)
        self._inner.finished(ending, text)

    def failed(self, code: str, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._over("failed", code, report)
        self._inner.failed(code, report)

    def cancelled(self, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._over("cancelled", None, report)
        self._inner.cancelled(report)

    def responded(self, status: int | None) -> None:
        """See :class:`RequestTrace`."""
        if self._asked is not None:
            self._over("cancelled", None, None)
            self._status = status
            self._journal.end(self)
        inner, self._responded = self._inner, True
        self._let_go()
        inner.responded(status)

    def _let_go(self) -> None:
        """A journal reaches far back: it must not hold what the other trace does, the answer's tokens among it."""
        if self._responded and (self._usage is not None or not self._dispatched):
            self._inner = NO_TRACE

    def _moment(self, name: str, lane: str | None = None, tokens: int | None = None) -> None:
        if self._outcome is None and len(self._moments) < MAX_MOMENTS:
            self._moments.append((name, self._now_s(), lane, tokens))

    def _over(self, outcome: Outcome, code: str | None, report: OptaReport | None) -> None:
        """The first ending told is the one that counts."""
        if self._outcome is None:
            self._ended_s = self._now_s()
            self._outcome, self._code, self._opta = outcome, code, report

    def _ms(self, at_s: float) -> float:
        return round((at_s - self._begun_s) * 1000, 2)
