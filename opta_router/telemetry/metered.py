"""What a request is told as, for the metrics: a trace around the trace, which counts what it is told.

It keeps a few times and names, and adds them to the :class:`Tally` when the request is over. Nothing is done per token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from lanes.wire import Lane
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry import names
from opta_router.telemetry.tally import Share, Tally
from opta_router.telemetry.tracing import RequestTrace
from policies.classify import Classification

_REJECTED: Final = frozenset({429, 503})


class MeteredTrace(RequestTrace):
    """Tells ``trace`` everything, and the tally what matters to it."""

    __slots__ = (
        "_admitted",
        "_begun_s",
        "_first_s",
        "_lane",
        "_model",
        "_moved_after_tokens",
        "_moved_to",
        "_operation",
        "_outcome",
        "_queued_s",
        "_read_usage",
        "_reason",
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
        self._operation = ""
        self._model = names.NO_MODEL
        self._lane: str = names.NO_LANE  # what was asked for, then the one that took it
        self._admitted: Lane | None = None
        self._moved_to: Lane | None = None
        self._moved_after_tokens = 0
        self._read_usage: Callable[[], Usage] | None = None
        self._settled = False
        self._tokens = 0
        self._outcome: str | None = None
        self._reason = ""

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
        self._operation, self._model, self._lane = request.operation, verdict.model, verdict.lane
        self._trace.classified(request, verdict, request_id=request_id, sub_client=sub_client, draft_model=draft_model)

    def queued(self) -> None:
        """See :class:`RequestTrace`."""
        if self._queued_s is None:
            self._queued_s = time.monotonic()
        self._trace.queued()

    def admitted(self, lane: Lane, route: str) -> None:
        """See :class:`RequestTrace`."""
        self._lane = self._admitted = lane
        if self._queued_s is not None:
            self._tally.waits.record(time.monotonic() - self._queued_s, (lane,), time.time_ns(), self._trace.identity)
        self._trace.admitted(lane, route)

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """See :class:`RequestTrace`."""
        if not self._settled and self._read_usage is None:
            self._read_usage = read_usage
            self._tally.begin(self, self._share)
        self._trace.dispatched(read_usage)

    def first_token(self) -> None:
        """See :class:`RequestTrace`."""
        if self._first_s is None:
            self._first_s = time.monotonic()
        self._trace.first_token()

    def demoted(self, lane: Lane, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._moved_to, self._moved_after_tokens = lane, emitted_tokens
        self._trace.demoted(lane, emitted_tokens)

    def interrupted(self) -> None:
        """See :class:`RequestTrace`."""
        self._trace.interrupted()

    def resumed(self, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._trace.resumed(emitted_tokens)

    def settled(self, usage: Usage) -> None:
        """See :class:`RequestTrace`."""
        if self._settled or self._admitted is None:
            return
        self._settled = True
        self._tally.settle(self, self._share_of(usage, self._admitted))
        self._trace.settled(usage)

    def finished(self, ending: Ending) -> None:
        """See :class:`RequestTrace`."""
        finished = ending.finished
        if self._ends("cancelled" if finished.reason == "cancelled" else "ok", finished.reason):
            self._tokens = finished.completion_tokens
        self._trace.finished(ending)

    def failed(self, code: str, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._ends("failed", code)
        self._trace.failed(code, report)

    def cancelled(self, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._ends("cancelled", "cancelled")
        self._trace.cancelled(report)

    def responded(self, status: int | None) -> None:
        """See :class:`RequestTrace`."""
        self._over(status)
        self._trace.responded(status)

    def _ends(self, outcome: str, reason: str) -> bool:
        """Whether this is its end: the first that is told."""
        if self._outcome is not None:
            return False
        self._outcome, self._reason = outcome, reason
        return True

    def _over(self, status: int | None) -> None:
        outcome, reason = self._outcome or "failed", self._reason or "internal_error"
        if outcome == "failed" and status is not None:
            outcome = "rejected" if status in _REJECTED else "invalid" if 400 <= status < 500 else "failed"
        self._tally.over(self._lane, self._model, outcome, reason)
        if not self._operation:
            return
        now_s, now_ns, identity = time.monotonic(), time.time_ns(), self._trace.identity
        served = self._operation, names.PROVIDER, self._model, self._lane
        error = None if outcome in ("ok", "cancelled") else reason
        self._tally.durations.record(now_s - self._begun_s, (*served, error), now_ns, identity)
        if outcome != "ok" or self._first_s is None:
            return
        self._tally.first_tokens.record(self._first_s - self._begun_s, served, now_ns, identity)
        if self._tokens > 1:
            mean_s = (now_s - self._first_s) / (self._tokens - 1)
            self._tally.token_times.record(mean_s, served, now_ns, identity)

    def _share(self) -> Share:
        """On any thread, as far as it has come."""
        if self._read_usage is None or self._admitted is None:
            raise RuntimeError("not dispatched")
        return self._share_of(self._read_usage(), self._admitted)

    def _share_of(self, usage: Usage, lane: Lane) -> Share:
        return Share(
            lane=lane,
            model=self._model,
            usage=usage,
            moved_to=self._moved_to,
            moved_after_tokens=self._moved_after_tokens,
        )
