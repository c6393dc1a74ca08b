"""What a request is told as, for the metrics: a trace around the trace, which counts what it is told.

It keeps a few times, and adds them to the :class:`Tally` when the request is over. Nothing is done per token. All
requests of a saturated front door pay for this, so it is measured in tenths of microseconds, and written so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from lanes.wire import Lane
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry.histograms import Identity
from opta_router.telemetry.tally import Served, Share, Tally
from opta_router.telemetry.tracing import RequestTrace
from policies.classify import Classification

_REJECTED: Final = frozenset({429, 503})


class MeteredTrace(RequestTrace):
    """Tells ``trace`` everything, and the tally what matters to it."""

    __slots__ = (
        "_begun_s",
        "_first_s",
        "_model",
        "_moved_after_tokens",
        "_moved_to",
        "_operation",
        "_outcome",
        "_queued_s",
        "_read_usage",
        "_reason",
        "_served",
        "_settled",
        "_tally",
        "_tokens",
        "_trace",
    )

    def __init__(self, tally: Tally, trace: RequestTrace) -> None:
        self._tally = tally
        self._trace = trace
        self._begun_s = time.monotonic()
        self._queued_s: float | None = None
        self._first_s: float | None = None
        self._operation = self._model = ""
        self._served: Served | None = None  # of the lane that was asked for, then of the one that took it
        self._moved_to: Served | None = None
        self._moved_after_tokens = 0
        self._read_usage: Callable[[], Usage] | None = None
        self._settled = False
        self._tokens = 0
        self._outcome: str | None = None
        self._reason = ""

    @property
    def records_content(self) -> bool:
        """See :class:`RequestTrace`."""
        return self._trace.records_content

    @property
    def identity(self) -> Identity | None:
        """See :class:`RequestTrace`."""
        return self._trace.identity

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
        self._operation, self._model = request.operation, verdict.model
        self._served = self._tally.served(request.operation, verdict.model, verdict.lane)
        self._trace.classified(request, verdict, request_id=request_id, sub_client=sub_client, draft_model=draft_model)

    def queued(self) -> None:
        """See :class:`RequestTrace`."""
        if self._queued_s is None:
            self._queued_s = time.monotonic()
        self._trace.queued()

    def admitted(self, lane: Lane, route: str) -> None:
        """See :class:`RequestTrace`."""
        self._served = self._tally.served(self._operation, self._model, lane)
        if self._queued_s is not None:
            self._tally.waits[lane].record(time.monotonic() - self._queued_s, self._trace.identity)
        self._trace.admitted(lane, route)

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """See :class:`RequestTrace`."""
        if not self._settled and self._read_usage is None and self._served is not None:
            self._read_usage = read_usage
            self._tally.begin(self)
        self._trace.dispatched(read_usage)

    def first_token(self) -> None:
        """See :class:`RequestTrace`."""
        if self._first_s is None:
            self._first_s = time.monotonic()
        self._trace.first_token()

    def demoted(self, lane: Lane, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._moved_to = self._tally.served(self._operation, self._model, lane)
        self._moved_after_tokens = emitted_tokens
        self._trace.demoted(lane, emitted_tokens)

    def interrupted(self) -> None:
        """See :class:`RequestTrace`."""
        self._trace.interrupted()

    def resumed(self, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._trace.resumed(emitted_tokens)

    def settled(self, usage: Usage) -> None:
        """See :class:`RequestTrace`."""
        if self._settled or self._served is None:
            return
        self._settled = True
        if self._moved_to is None:
            self._tally.settle(self, self._served, usage)
        else:
            self._tally.settle_moved(self, Share(self._served, usage, self._moved_to, self._moved_after_tokens))
        self._trace.settled(usage)

    def finished(self, ending: Ending, text: str = "") -> None:
        """See :class:`RequestTrace`."""
        if self._outcome is None:
            finished = ending.finished
            self._outcome = "cancelled" if finished.reason == "cancelled" else "ok"
            self._reason = finished.reason
            self._tokens = finished.completion_tokens
        self._trace.finished(ending, text)

    def failed(self, code: str, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        if self._outcome is None:
            self._outcome, self._reason = "failed", code
        self._trace.failed(code, report)

    def cancelled(self, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        if self._outcome is None:
            self._outcome = self._reason = "cancelled"
        self._trace.cancelled(report)

    def responded(self, status: int | None) -> None:
        """See :class:`RequestTrace`."""
        if self._outcome == "ok" and self._served is not None:
            self._over_well(self._served)
        else:
            self._over(status)
        self._trace.responded(status)

    def share(self) -> Share:
        """On any thread, as far as it has come."""
        if self._read_usage is None or self._served is None:
            raise RuntimeError("not dispatched")
        return Share(self._served, self._read_usage(), self._moved_to, self._moved_after_tokens)

    def _over_well(self, served: Served) -> None:
        served.count("ok", self._reason)
        now_s, identity = time.monotonic(), self._trace.identity
        served.durations.record(now_s - self._begun_s, identity)
        if self._first_s is None:
            return
        served.first_tokens.record(self._first_s - self._begun_s, identity)
        if self._tokens > 1:
            served.token_times.record((now_s - self._first_s) / (self._tokens - 1), identity)

    def _over(self, status: int | None) -> None:
        outcome, reason = self._outcome or "failed", self._reason or "internal_error"
        if outcome == "failed" and status is not None:
            outcome = "rejected" if status in _REJECTED else "invalid" if 400 <= status < 500 else "failed"
        served = self._served
        if served is None:
            self._tally.not_understood[outcome, reason] += 1
            return
        served.count(outcome, reason)
        durations = served.durations if outcome == "cancelled" else served.durations_of(reason)
        durations.record(time.monotonic() - self._begun_s, self._trace.identity)
