"""One request as spans::

    SERVER  POST /v1/chat/completions      request() ──────────────────────────────────► responded()
      CLIENT  chat opta-tiny                 classified() ──────► finished(), failed(), cancelled()
        opta.queue                             queued() ► admitted()
        opta.decode                                         dispatched() ──► interrupted(), or the end
        opta.decode, linked to the first                                       resumed() ──► the end

Nothing here is done per token. Contexts are passed by hand: a request's stages run in different tasks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lanes.wire import Lane
from opta_router.errors import EngineDied
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry import facts, names
from opta_router.telemetry.histograms import Identity
from opta_router.telemetry.tracing import RequestTrace
from policies.classify import Classification

_MAX_TRACEPARENT_CHARS: Final = 512
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def parent_of(headers: Mapping[str, str]) -> Context:
    """The client's span, from a valid W3C ``traceparent``; otherwise an empty context.

    ``tracestate`` and ``baggage`` are left behind: we pass them on to nobody, and they are the client's text.
    """
    traceparent = headers.get("traceparent")
    # The propagator refuses longer ones, too, but logs a line for each: a client's way to fill a disk.
    if traceparent is None or len(traceparent) > _MAX_TRACEPARENT_CHARS:
        return Context()
    return _PROPAGATOR.extract({"traceparent": traceparent}, Context())


class SpanTrace(RequestTrace):
    """A request that is recorded. Every span ends exactly once, whatever is told in whatever order.

    The first ending told is the one that counts. A wall clock that jumps does not bend a span: within a request time
    is monotonic.
    """

    __slots__ = (
        "_begun_ns",
        "_begun_wall_ns",
        "_classified",
        "_client",
        "_decode",
        "_ended",
        "_error",
        "_first_decode",
        "_identity",
        "_queue",
        "_queue_ms",
        "_queued_ns",
        "_resumed",
        "_server",
        "_tracer",
        "_ttft_ms",
    )

    def __init__(self, tracer: Tracer, server: Span, begun_wall_ns: int) -> None:
        context = server.get_span_context()
        self._identity = Identity(context.trace_id, context.span_id)
        self._tracer = tracer
        self._begun_wall_ns = begun_wall_ns
        self._begun_ns = time.monotonic_ns()
        # An open span each; None before it begins and after it has ended.
        self._server: Span | None = server
        self._client: Span | None = None
        self._queue: Span | None = None
        self._decode: Span | None = None
        self._classified = False
        self._ended = False
        self._first_decode: Link | None = None
        self._queued_ns = 0
        self._queue_ms: float | None = None
        self._ttft_ms: float | None = None
        self._resumed = 0
        self._error: str | None = None

    @property
    def identity(self) -> Identity | None:
        """See :class:`RequestTrace`."""
        return self._identity

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
        self._client = self._tracer.start_span(
            f"{request.operation} {verdict.model}",
            set_span_in_context(self._server, Context()),
            SpanKind.CLIENT,
            facts.of_inference(request, verdict, request_id=request_id, sub_client=sub_client, draft_model=draft_model),
            start_time=self._now_ns(),
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
        self._client.set_attributes(where)
        if self._queue is None:
            return
        now_ns = self._now_ns()
        self._queue_ms = (now_ns - self._queued_ns) / 1e6
        self._queue.add_event(names.EVENT_ADMITTED, where, now_ns)
        self._queue.end(now_ns)
        self._queue = None

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._first_decode is not None:
            return
        self._decode = self._stage(self._client, names.SPAN_DECODE, self._now_ns())
        self._first_decode = Link(self._decode.get_span_context())

    def first_token(self) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._ttft_ms is not None:
            return
        now_ns = self._now_ns()
        self._ttft_ms = (now_ns - self._begun_wall_ns) / 1e6
        self._client.add_event(names.EVENT_FIRST_TOKEN, timestamp=now_ns)

    def demoted(self, lane: Lane, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._decode is None:
            return
        self._client.set_attributes({names.DEMOTED: True, names.DEMOTED_EMITTED_TOKENS: emitted_tokens})
        event: facts.Attributes = {names.LANE: lane, names.DEMOTED_EMITTED_TOKENS: emitted_tokens}
        self._decode.add_event(names.EVENT_DEMOTED, event, self._now_ns())

    def interrupted(self) -> None:
        """See :class:`RequestTrace`."""
        if self._decode is not None:
            _end(self._decode, self._now_ns(), EngineDied.code)
            self._decode = None

    def resumed(self, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        if self._client is None or self._first_decode is None:
            return
        self.interrupted()
        self._resumed += 1
        now_ns = self._now_ns()
        self._decode = self._stage(self._client, names.SPAN_DECODE, now_ns, self._first_decode)
        event: facts.Attributes = {names.RESUMED: self._resumed, names.EMITTED_TOKENS: emitted_tokens}
        self._decode.add_event(names.EVENT_RESUMED, event, now_ns)

    def finished(self, ending: Ending) -> None:
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
            self._server.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status)
        # By the HTTP conventions a 4xx is the client's error, not the server span's.
        _end(self._server, self._now_ns(), error, is_ours=status is None or not 400 <= status < 500)
        self._server = None

    def _stage(self, client: Span, name: str, now_ns: int, *links: Link) -> Span:
        return self._tracer.start_span(name, set_span_in_context(client, Context()), links=links, start_time=now_ns)

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
                _end(stage, now_ns, error)
        self._client.set_attributes(attributes)
        self._client.set_attribute(names.LATENCY_E2E, (now_ns - self._begun_wall_ns) / 1e9)
        _end(self._client, now_ns, error)
        self._client = self._queue = self._decode = None

    def _now_ns(self) -> int:
        return self._begun_wall_ns + time.monotonic_ns() - self._begun_ns


def _end(span: Span, now_ns: int, error: str | None, *, is_ours: bool = True) -> None:
    """No description goes with the status: messages may repeat what a client wrote."""
    if error is not None:
        span.set_attribute(names.ERROR_TYPE, error)
        if is_ours:
            span.set_status(StatusCode.ERROR)
    span.end(now_ns)
