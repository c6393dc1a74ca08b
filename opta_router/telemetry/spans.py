"""One request as spans::

    SERVER  POST /v1/chat/completions      request() ──────────────────────────────────► responded()
      CLIENT  chat opta-tiny                 classified() ──────► finished(), failed(), cancelled()
        opta.queue                             queued() ► admitted()
        opta.decode                                         dispatched() ──► interrupted(), or the end
        opta.decode, linked to the first                                       resumed() ──► the end

Nothing here is done per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lanes.wire import Lane
from opta_router.errors import EngineDied
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry import facts, names
from opta_router.telemetry.span_data import OpenSpan, SpanBook
from opta_router.telemetry.tracing import RequestTrace
from policies.classify import Classification

_MAX_TRACEPARENT_CHARS: Final = 512
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def parent_of(headers: Mapping[str, str]) -> SpanContext | None:
    """The client's span, from a valid W3C ``traceparent``.

    ``tracestate`` and ``baggage`` are left behind: we pass them on to nobody, and they are the client's text.
    """
    traceparent = headers.get("traceparent")
    # The propagator refuses longer ones, too, but logs a line for each: a client's way to fill a disk.
    if traceparent is None or len(traceparent) > _MAX_TRACEPARENT_CHARS:
        return None
    context = get_current_span(_PROPAGATOR.extract({"traceparent": traceparent}, Context())).get_span_context()
    return context if context.is_valid else None


class SpanTrace(RequestTrace):
    """Makes a request's spans of what it is told. Every span ends exactly once, whatever is told in whatever order.

    The first ending told is the one that counts.

    Args:
        book: where its spans are kept.
        server: the SERVER span, begun.
        now_ns: when what is told happened, in nanoseconds since the epoch; never goes back.
    """

    __slots__ = (
        "_begun_ns",
        "_book",
        "_classified",
        "_client",
        "_decode",
        "_ended",
        "_error",
        "_first_decode",
        "_now_ns",
        "_queue",
        "_queue_ms",
        "_queued_ns",
        "_resumed",
        "_server",
        "_ttft_ms",
    )

    def __init__(self, book: SpanBook, server: OpenSpan, now_ns: Callable[[], int]) -> None:
        self._book = book
        self._now_ns = now_ns
        self._begun_ns = now_ns()
        # An open span each; None before it begins and after it has ended.
        self._server: OpenSpan | None = server
        self._client: OpenSpan | None = None
        self._queue: OpenSpan | None = None
        self._decode: OpenSpan | None = None
        self._classified = False
        self._ended = False
        self._first_decode: SpanContext | None = None
        self._queued_ns = 0
        self._queue_ms: float | None = None
        self._ttft_ms: float | None = None
        self._resumed = 0
        self._error: str | None = None

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
        if self._server is None or self._classified or self._ended:
            return
        self._classified = True
        name = f"{request.operation} {verdict.model}"
        self._client = self._book.start(name, self._server.context, SpanKind.CLIENT, self._now_ns())
        self._client.set(
            facts.of_inference(request, verdict, request_id=request_id, sub_client=sub_client, draft_model=draft_model)
        )

    def queued(self) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._queue is not None:
            return
        self._queued_ns = self._now_ns()
        self._queue = self._stage(self._client, names.SPAN_QUEUE, self._queued_ns)

    def admitted(self, lane: Lane, route: str) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None:
            return
        where: facts.Attributes = {names.LANE: lane, names.LANE_REASON: route}
        self._client.set(where)
        if self._queue is None:
            return
        now_ns = self._now_ns()
        self._queue_ms = (now_ns - self._queued_ns) / 1e6
        self._queue.add_event(names.EVENT_ADMITTED, now_ns, where)
        self._book.end(self._queue, now_ns)
        self._queue = None

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._first_decode is not None:
            return
        self._decode = self._stage(self._client, names.SPAN_DECODE, self._now_ns())
        self._first_decode = self._decode.context

    def first_token(self) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._ttft_ms is not None:
            return
        now_ns = self._now_ns()
        self._ttft_ms = (now_ns - self._begun_ns) / 1e6
        self._client.add_event(names.EVENT_FIRST_TOKEN, now_ns)

    def demoted(self, lane: Lane, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._decode is None:
            return
        self._client.set({names.DEMOTED: True, names.DEMOTED_EMITTED_TOKENS: emitted_tokens})
        event: facts.Attributes = {names.LANE: lane, names.DEMOTED_EMITTED_TOKENS: emitted_tokens}
        self._decode.add_event(names.EVENT_DEMOTED, self._now_ns(), event)

    def interrupted(self) -> None:
        """See :class:`RequestTrace`."""
        if self._decode is not None:
            self._end(self._decode, self._now_ns(), EngineDied.code)
            self._decode = None

    def resumed(self, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._first_decode is None:
            return
        self.interrupted()
        self._resumed += 1
        now_ns = self._now_ns()
        self._decode = self._stage(self._client, names.SPAN_DECODE, now_ns)
        self._decode.link(self._first_decode)
        event: facts.Attributes = {names.RESUMED: self._resumed, names.EMITTED_TOKENS: emitted_tokens}
        self._decode.add_event(names.EVENT_RESUMED, now_ns, event)

    def contains(self, content: facts.Attributes) -> None:
        """Prompt or answer, where they are to be recorded."""
        if self._client is not None:
            self._client.set(content)

    def finished(self, ending: Ending, text: str = "") -> None:
        """See :class:`RequestTrace`."""
        self._over(facts.of_ending(ending))

    def failed(self, code: str, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        if not self._ended:
            self._error = code
        self._over(self._known(report), code)

    def cancelled(self, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._over({names.RESPONSE_FINISH_REASONS: ("cancelled",), **self._known(report)})

    def responded(self, status: int | None) -> None:
        """See :class:`RequestTrace`."""
        if self._server is None:
            return
        error = self._error or (str(status) if status is not None and status >= 500 else None)
        self._over(self._known(None), error)
        if status is not None:
            self._server.set({names.HTTP_RESPONSE_STATUS_CODE: status})
        # By the HTTP conventions a 4xx is the client's error, not the server span's.
        self._end(self._server, self._now_ns(), error, is_ours=status is None or not 400 <= status < 500)
        self._server = None

    def _stage(self, client: OpenSpan, name: str, now_ns: int) -> OpenSpan:
        return self._book.start(name, client.context, SpanKind.INTERNAL, now_ns)

    def _known(self, report: OptaReport | None) -> facts.Attributes:
        """What can be said of a request that did not get to its end."""
        if report is not None:
            return facts.of_report(report)
        return {names.RESUMED: self._resumed, **facts.of_latencies(self._queue_ms, self._ttft_ms)}

    def _over(self, attributes: facts.Attributes, error: str | None = None) -> None:
        """End the CLIENT span and the stage that it is in. Only the first time counts."""
        self._ended = True
        if self._client is None:
            return
        now_ns = self._now_ns()
        for stage in (self._queue, self._decode):
            if stage is not None:
                self._end(stage, now_ns, error)
        self._client.set(attributes)
        self._client.set({names.LATENCY_E2E: (now_ns - self._begun_ns) / 1e9})
        self._end(self._client, now_ns, error)
        self._client = self._queue = self._decode = None

    def _end(self, span: OpenSpan, now_ns: int, error: str | None, *, is_ours: bool = True) -> None:
        if error is not None:
            span.set({names.ERROR_TYPE: error})
            if is_ours:
                span.fail()
        self._book.end(span, now_ns)
