"""A request's trace while the request runs: what it was told, and when. The spans are made later, by who sends them.

A call costs half a microsecond of the event loop's time, and the spans hundreds of the sending thread's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeAlias

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind

from lanes import wire
from lanes.wire import Lane
from opta_router.request import Ending, GenerationRequest, OptaReport, Usage
from opta_router.telemetry import content
from opta_router.telemetry.facts import Attributes
from opta_router.telemetry.histograms import Identity
from opta_router.telemetry.span_data import SpanBook, new_context
from opta_router.telemetry.spans import SpanTrace
from opta_router.telemetry.tracing import RequestTrace
from policies.classify import Classification

Telling: TypeAlias = tuple[int, Callable[[SpanTrace], None]]
"""When, on the monotonic clock in nanoseconds, and what."""

NOTHING: Final = wire.TokenPrompt(())


class ToldTrace(RequestTrace):
    """See :class:`RequestTrace`; when the exchange is over it goes to ``keep``, and takes nothing more.

    It holds nothing of the prompt or the answer, but for what ``records_content`` asks it to, which is bounded.

    Args:
        name: the SERVER span's.
        exchange: the SERVER span's attributes, as far as they are known when it begins.
        parent: the client's span, if it has one.
        keep: takes the trace when it is whole; must not wait.
        records_content: whether prompt and answer are part of it.
    """

    __slots__ = (
        "_begun_ns",
        "_begun_wall_ns",
        "_exchange",
        "_keep",
        "_name",
        "_parent",
        "_records_content",
        "_tellings",
        "_whole",
        "context",
    )

    def __init__(
        self,
        name: str,
        exchange: Attributes,
        parent: SpanContext | None,
        keep: Callable[[ToldTrace], None],
        *,
        records_content: bool = False,
    ) -> None:
        self._begun_wall_ns = time.time_ns()
        self._begun_ns = time.monotonic_ns()
        self._name = name
        self._exchange = exchange
        self._parent = parent
        self._keep = keep
        self._tellings: list[Telling] = []
        self._whole = False
        self.context = new_context(parent.trace_id if parent is not None else None)
        self._records_content = records_content

    @property
    def records_content(self) -> bool:
        """See :class:`RequestTrace`."""
        return self._records_content

    @property
    def identity(self) -> Identity | None:
        """See :class:`RequestTrace`."""
        return Identity(self.context.trace_id, self.context.span_id)

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
        said = content.of_prompt(request, verdict) if self._records_content else None
        asked = msgspec.structs.replace(request, prompt=NOTHING, user=None, metadata={}, hints={})

        def tell(trace: SpanTrace) -> None:
            trace.classified(asked, verdict, request_id=request_id, sub_client=sub_client, draft_model=draft_model)
            if said is not None:
                trace.contains(said.attributes())

        self._tell(tell)

    def queued(self) -> None:
        """See :class:`RequestTrace`."""
        self._tell(SpanTrace.queued)

    def admitted(self, lane: Lane, route: str) -> None:
        """See :class:`RequestTrace`."""
        self._tell(lambda trace: trace.admitted(lane, route))

    def dispatched(self, read_usage: Callable[[], Usage]) -> None:
        """See :class:`RequestTrace`."""
        self._tell(lambda trace: trace.dispatched(read_usage))

    def first_token(self) -> None:
        """See :class:`RequestTrace`."""
        self._tell(SpanTrace.first_token)

    def demoted(self, lane: Lane, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._tell(lambda trace: trace.demoted(lane, emitted_tokens))

    def interrupted(self) -> None:
        """See :class:`RequestTrace`."""
        self._tell(SpanTrace.interrupted)

    def resumed(self, emitted_tokens: int) -> None:
        """See :class:`RequestTrace`."""
        self._tell(lambda trace: trace.resumed(emitted_tokens))

    def finished(self, ending: Ending, text: str = "") -> None:
        """See :class:`RequestTrace`."""
        if self._records_content:
            said = content.of_answer(text, ending.finished.reason)
            self._tell(lambda trace: trace.contains(said.attributes()))
        self._tell(lambda trace: trace.finished(ending))

    def failed(self, code: str, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._tell(lambda trace: trace.failed(code, report))

    def cancelled(self, report: OptaReport | None = None) -> None:
        """See :class:`RequestTrace`."""
        self._tell(lambda trace: trace.cancelled(report))

    def responded(self, status: int | None) -> None:
        """See :class:`RequestTrace`."""
        if self._whole:
            return
        self._tell(lambda trace: trace.responded(status))
        self._whole = True
        self._keep(self)

    def spans(self, resource: Resource, scope: InstrumentationScope) -> list[ReadableSpan]:
        """Its spans, in the order of their ends. On any thread, once it is whole.

        A wall clock that jumped does not bend them: within a request time is monotonic.
        """
        book = SpanBook(resource, scope)
        server = book.start(self._name, self._parent, SpanKind.SERVER, self._begun_wall_ns, self.context)
        server.set(self._exchange)
        now_ns = self._begun_wall_ns
        trace = SpanTrace(book, server, lambda: now_ns)
        for told_ns, tell in self._tellings:
            now_ns = self._begun_wall_ns + told_ns - self._begun_ns
            tell(trace)
        return book.ended

    def _tell(self, what: Callable[[SpanTrace], None]) -> None:
        if not self._whole:
            self._tellings.append((time.monotonic_ns(), what))
