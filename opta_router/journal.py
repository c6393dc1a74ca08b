"""The last requests and those in flight, with their moments: what an operator sees of single requests.

Kept in memory, bounded, and about nothing that a client wrote: no prompt, no answer, no error's text. A request costs a
few timestamps; nothing here is done per token.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, Literal, TypeAlias

import msgspec

from lanes.wire import Lane as DeviceLane
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry import RequestTrace
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


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request. ``arrived_s`` is in seconds of the Unix epoch, ``begun_s`` of the journal's clock; ``seq`` counts
    the entries, in the order of arrival.

    ``lane`` is first what the rules chose, which may be ``auto``, then where it was admitted. ``opta`` is its answer's.
    ``code``: of the error that it failed with.
    """

    seq: int
    request_id: str
    model: str
    lane: str
    route: str
    arrived_s: float
    begun_s: float
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


class Ended(msgspec.Struct, frozen=True):
    """An entry that is complete. ``order`` counts the ends."""

    order: int
    entry: Entry
    _encoded: list[bytes]

    @property
    def encoded(self) -> bytes:
        """JSON of :class:`Entry`, made at the first look."""
        if not self._encoded:
            self._encoded.append(msgspec.json.encode(self.entry))
        return self._encoded[0]


class Journal:
    """One for each router, on its event loop.

    Args:
        now_s: a monotonic clock.
        wall_s: seconds of the Unix epoch.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic, wall_s: Callable[[], float] = time.time) -> None:
        self.now_s = now_s
        self._wall_s = wall_s
        self._open: dict[RequestTrace, Entry] = {}
        self._ended: deque[Ended] = deque(maxlen=MAX_ENDED)
        self._arrived = 0
        self.ends = 0

    def watched(self, trace: RequestTrace) -> RequestTrace:
        """``trace``, with this journal listening."""
        return WatchedTrace(self, trace, self.now_s())

    def ended_after(self, order: int) -> list[Ended]:
        """Whoever ended after the ``order``-th end, oldest first, as far as the journal reaches back."""
        missing = min(self.ends - order, len(self._ended))
        return list(islice(self._ended, len(self._ended) - missing, None))

    def open_entries(self) -> Iterator[tuple[RequestTrace, Entry]]:
        """Requests that have not ended, oldest first, by the trace that the dispatcher tells of them."""
        return iter(self._open.items())

    def stats(self) -> dict[str, int]:
        """How many entries are kept."""
        return {"open": len(self._open), "ended": len(self._ended)}

    def elapsed_ms(self, begun_s: float) -> float:
        """Milliseconds since then."""
        return round((self.now_s() - begun_s) * 1000, 2)

    def begin(self, trace: RequestTrace, entry: Callable[[int, float], Entry], begun_s: float) -> Entry:
        """A request has become one that can be named. ``entry`` takes its number and when it arrived."""
        self._arrived += 1
        self._open[trace] = entry(self._arrived, self._wall_s() - (self.now_s() - begun_s))
        return self._open[trace]

    def end(self, trace: RequestTrace) -> None:
        """It is over."""
        self.ends += 1
        self._ended.append(Ended(self.ends, self._open.pop(trace), []))


class WatchedTrace(RequestTrace):
    """Tells a journal what it is told, and then the trace that it stands for."""

    __slots__ = ("_begun_s", "_entry", "_inner", "_journal")

    def __init__(self, journal: Journal, inner: RequestTrace, begun_s: float) -> None:
        self._journal = journal
        self._inner = inner
        self._begun_s = begun_s
        self._entry: Entry | None = None

    @property
    def records_content(self) -> bool:
        """See :class:`RequestTrace`."""
        return self._inner.records_content

    @property
    def identity(self) -> Identity | None:
        """See :class:`RequestTrace`."""
        return self._inner.identity

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

        def entry(seq: int, arrived_s: float) -> Entry:
            return Entry(
                seq=seq,
                request_id=request_id,
                model=verdict.model,
                lane=verdict.lane,
                route=verdict.route,
                arrived_s=arrived_s,
                begun_s=self._begun_s,
                operation=request.operation,
                stream=request.stream,
                client=verdict.client.name if verdict.client is not None else None,
                sub_client=sub_client or None,
                hint=verdict.hint,
                preset=verdict.preset.name if verdict.preset is not None else None,
                draft=draft_model,
                max_tokens=request.max_tokens,
                moments=[],
            )

        if self._entry is None:
            self._entry = self._journal.begin(self, entry, self._begun_s)
        self._inner.classified(request, verdict, request_id=request_id, sub_client=sub_client, draft_model=draft_model)

    def queued(self) -> None:
        """See :class:`RequestTrace`."""
        self._moment("queued")
        self._inner.queued()

    def admitted(self, lane: DeviceLane, route: str) -> None:
        """See :class:`RequestTrace`."""
        self._moment("admitted", lane=lane)
        if self._entry is not None:
            self._entry.lane, self._entry.route = lane, route
        self._inner.admitted(lane, route)

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """See :class:`RequestTrace`."""
        self._moment("dispatched")
        self._inner.dispatched(read_usage)

    def first_token(self) -> None:
        """See :class:`RequestTrace`."""
        self._moment("first_token")
        self._inner.first_token()

    def demoted(self, lane: DeviceLane, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._moment("demoted", lane=lane, tokens=emitted_tokens)
        self._inner.demoted(lane, emitted_tokens)

    def interrupted(self) -> None:
        """See :class:`RequestTrace`."""
        self._moment("interrupted")
        self._inner.interrupted()

    def resumed(self, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._moment("resumed", tokens=emitted_tokens)
        self._inner.resumed(emitted_tokens)

    def settled(self, usage: Usage) -> None:
        """See :class:`RequestTrace`."""
        entry = self._entry
        if entry is not None and entry.outcome is None:
            entry.prompt_tokens, entry.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        self._inner.settled(usage)

    def finished(self, ending: Ending, text: str = "") -> None:
        """See :class:`RequestTrace`."""
        entry, finished = self._entry, ending.finished
        if entry is not None and entry.outcome is None:
            entry.finish_reason = finished.reason
            entry.prompt_tokens = finished.prompt_tokens
            entry.cached_tokens = finished.cached_tokens
            entry.completion_tokens = finished.completion_tokens
        self._over("finished", ending.opta)
        self._inner.finished(ending, text)

    def failed(self, code: str, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        if self._entry is not None and self._entry.outcome is None:
            self._entry.code = code
        self._over("failed", report)
        self._inner.failed(code, report)

    def cancelled(self, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._over("cancelled", report)
        self._inner.cancelled(report)

    def responded(self, status: int | None) -> None:
        """See :class:`RequestTrace`."""
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.status = status
            self._end(entry, entry.outcome or "cancelled", entry.opta)
            self._journal.end(self)
        self._inner.responded(status)

    def _moment(self, name: str, **facts: Any) -> None:
        entry = self._entry
        if entry is not None and entry.outcome is None and len(entry.moments) < MAX_MOMENTS:
            entry.moments.append(Moment(name, self._journal.elapsed_ms(self._begun_s), **facts))

    def _over(self, outcome: Outcome, report: OptaReport | None) -> None:
        """The first ending told is the one that counts."""
        if self._entry is not None and self._entry.outcome is None:
            self._end(self._entry, outcome, report)

    def _end(self, entry: Entry, outcome: Outcome, report: OptaReport | None) -> None:
        if entry.outcome is None:
            entry.duration_ms = self._journal.elapsed_ms(self._begun_s)
            entry.outcome, entry.opta = outcome, report
