"""Spans in the SDK's data model, made at once and whole: for a request that is over all that they say is known.

A span of the SDK's own costs its caller 50 to 100 µs, for it checks and locks at each attribute; one of these costs 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from opta_router.telemetry import names
from opta_router.telemetry.facts import Attributes, Value

MAX_ATTRIBUTE_CHARS: Final = 1024
"""Longer values are cut: header values and stop strings are as long as a client makes them."""

SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_ids = RandomIdGenerator()


def new_context(trace_id: int | None = None) -> SpanContext:
    """Of a new span, in a new trace or in that one."""
    return SpanContext(
        _ids.generate_trace_id() if trace_id is None else trace_id, _ids.generate_span_id(), False, SAMPLED
    )


class OpenSpan:
    """A span that has begun. Times are in nanoseconds since the epoch."""

    __slots__ = ("_attributes", "_events", "_failed", "_kind", "_links", "_name", "_parent", "_start_ns", "context")

    def __init__(
        self, name: str, context: SpanContext, parent: SpanContext | None, kind: SpanKind, start_ns: int
    ) -> None:
        self.context = context
        self._name = name
        self._parent = parent
        self._kind = kind
        self._start_ns = start_ns
        self._attributes: Attributes = {}
        self._events: list[Event] = []
        self._links: list[Link] = []
        self._failed = False

    def set(self, attributes: Mapping[str, Value]) -> None:
        """Add attributes, or replace them."""
        self._attributes.update(attributes)

    def add_event(self, name: str, now_ns: int, attributes: Mapping[str, Value] | None = None) -> None:
        """Something happened."""
        self._events.append(Event(name, attributes, now_ns))

    def link(self, other: SpanContext) -> None:
        """It goes on with what ``other`` began."""
        self._links.append(Link(other))

    def fail(self) -> None:
        """It ends badly. No description goes with that: messages may repeat what a client wrote."""
        self._failed = True

    def ended(self, now_ns: int, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
        """The span, to be exported."""
        return ReadableSpan(
            name=self._name,
            context=self.context,
            parent=self._parent,
            resource=resource,
            attributes={name: _cut(name, value) for name, value in self._attributes.items()},
            events=self._events,
            links=self._links,
            kind=self._kind,
            status=Status(StatusCode.ERROR if self._failed else StatusCode.UNSET),
            start_time=self._start_ns,
            end_time=now_ns,
            instrumentation_scope=scope,
        )


class SpanBook:
    """The spans of one trace."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        self._resource = resource
        self._scope = scope
        self.ended: list[ReadableSpan] = []
        self.open = 0

    def start(
        self,
        name: str,
        parent: SpanContext | None,
        kind: SpanKind,
        start_ns: int,
        context: SpanContext | None = None,
    ) -> OpenSpan:
        """A new one; ``context`` if it has its ids already."""
        self.open += 1
        own = context or new_context(parent.trace_id if parent is not None else None)
        return OpenSpan(name, own, parent, kind, start_ns)

    def end(self, span: OpenSpan, now_ns: int) -> None:
        """Its last word. Once."""
        self.open -= 1
        self.ended.append(span.ended(now_ns, self._resource, self._scope))


def _cut(name: str, value: Value) -> Value:
    if isinstance(value, str):
        return value if len(value) <= MAX_ATTRIBUTE_CHARS or name in names.CONTENT else value[:MAX_ATTRIBUTE_CHARS]
    if isinstance(value, bool | int | float):
        return value
    return tuple(one[:MAX_ATTRIBUTE_CHARS] for one in value)
