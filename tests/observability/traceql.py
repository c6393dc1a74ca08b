"""TraceQL evaluated over spans off the wire, by Tempo's rules about types.

Tempo keeps attributes in columns by type, so that a literal of another type finds nothing and says nothing; neither
does a name that no span has, nor a quantile of floats. Here each of these is refused.

Only what our dashboards use is known: filters, ``select``, and metrics with ``by``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.observability.traceql_syntax import Node, Refused, parse
from tests.otlp import Span

DURATION_UNITS_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
TYPES = {bool: "bool", int: "int", float: "float", str: "string"}
INTRINSICS: dict[str, tuple[str, Callable[[Span], Any]]] = {
    "name": ("string", lambda span: span.name),
    "duration": ("duration", lambda span: span.end_ns - span.start_ns),
    "status": ("status", lambda span: span.status.lower()),
    "kind": ("kind", lambda span: span.kind.lower()),
}
KEYWORDS = {
    **dict.fromkeys(("error", "ok", "unset"), "status"),
    **dict.fromkeys(("server", "client", "internal", "producer", "consumer"), "kind"),
    **dict.fromkeys(("true", "false"), "bool"),
    "nil": "nil",
}
ORDERED = ("int", "float", "duration")
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    # Tempo's regular expressions match the whole value.
    "=~": lambda a, b: re.fullmatch(b, a) is not None,
    "!~": lambda a, b: re.fullmatch(b, a) is None,
}
NUMERIC = ("min_over_time", "max_over_time", "avg_over_time", "sum_over_time")
COUNTING = ("rate", "count_over_time")


@dataclass(frozen=True)
class Found:
    """What a query finds: spans, and of a metrics query the spans of each series, by the values of its labels."""

    spans: tuple[Span, ...]
    series: dict[tuple[Any, ...], tuple[Span, ...]]


@dataclass(frozen=True)
class Operand:
    """One side of a comparison. `of` gives its value for a span, None where the span has none."""

    type: str
    of: Callable[[Span], Any]
    literal: bool = False


def evaluate(query: str, spans: Sequence[Span]) -> Found:
    """What the query finds among the spans.

    Raises:
        Refused: not TraceQL, or against Tempo's rules, or beyond what is known here.
    """
    return _Evaluation(spans).of(parse(query))


class _Evaluation:
    def __init__(self, spans: Sequence[Span]) -> None:
        self._all = spans

    def of(self, tree: Node) -> Found:
        if len(tree.children) != 1:
            raise Refused(f"hints are not known here: {tree.text}")
        stages = list(_stages(tree.children[0]))
        head, rest = stages[0], stages[1:]
        if head.name != "SpansetFilter":
            raise Refused(f"a query begins with a filter, not with {head.text}")
        holds = self._condition(head.children[0]) if head.children else lambda _span: True
        found = Found(tuple(span for span in self._all if holds(span)), {})
        for stage in rest:
            if found.series:
                raise Refused(f"not known here after a metrics function: {stage.text}")
            found = self._stage(stage, found)
        return found

    def _stage(self, stage: Node, found: Found) -> Found:
        if stage.name == "SelectOperation":
            for field in (*stage.all("AttributeField"), *stage.all("IntrinsicField")):
                self._field(field)
            return found
        if stage.name == "MetricsOperation":
            return self._metrics(stage.children[0], found)
        raise Refused(f"not known here: {stage.text}")

    def _metrics(self, operation: Node, found: Found) -> Found:
        function = operation.text.partition("(")[0].strip()
        self._check_function(function, operation)
        group = next(operation.all("GroupOperation"), None)
        fields = [] if group is None else [self._field(child.children[0]) for child in group.children]
        series: dict[tuple[Any, ...], tuple[Span, ...]] = {}
        for span in found.spans:
            labels = tuple(field.of(span) for field in fields)
            series[labels] = (*series.get(labels, ()), span)
        return Found(found.spans, series)

    def _check_function(self, function: str, operation: Node) -> None:
        group = next(operation.all("GroupOperation"), None)
        grouped = set() if group is None else set(group.all("AttributeField")) | set(group.all("IntrinsicField"))
        arguments = [
            node for name in ("AttributeField", "IntrinsicField") for node in operation.all(name) if node not in grouped
        ]
        if function in COUNTING:
            if arguments:
                raise Refused(f"{function} takes nothing: {operation.text}")
            return
        if len(arguments) != 1:
            raise Refused(f"{function} is of one attribute: {operation.text}")
        of_what = self._field(arguments[0])
        if function == "quantile_over_time":
            # Tempo counts in buckets of powers of two, which it makes for whole numbers only.
            if of_what.type not in ("int", "duration"):
                raise Refused(f"no quantiles of a {of_what.type}: {arguments[0].text}")
            if not all(0 <= float(q.text) <= 1 for q in operation.all("MetricsOperationQuantileArgsType")):
                raise Refused(f"a quantile is between 0 and 1: {operation.text}")
        elif function not in NUMERIC:
            raise Refused(f"not known here: {operation.text}")
        elif of_what.type not in ORDERED:
            raise Refused(f"{function} of a {of_what.type}: {arguments[0].text}")

    def _condition(self, node: Node) -> Callable[[Span], bool]:
        children = node.children
        if node.name != "FieldExpression" or node.text.startswith("!"):
            raise Refused(f"not known here: {node.text}")
        if len(children) == 1:
            return self._condition(children[0])
        if len(children) != 3:
            raise Refused(f"not known here: {node.text}")
        left, operator, right = children
        if operator.name in ("And", "Or"):
            sides = (self._condition(left), self._condition(right))
            both = all if operator.name == "And" else any
            return lambda span: both(side(span) for side in sides)
        return self._comparison(self._operand(left), operator.text, self._operand(right), node.text)

    def _comparison(self, left: Operand, operator: str, right: Operand, text: str) -> Callable[[Span], bool]:
        if left.literal or not right.literal:
            raise Refused(f"an attribute on the left, a literal on the right: {text}")
        if operator not in COMPARISONS:
            raise Refused(f"not known here: {operator} in {text}")
        if right.type == "nil":
            if operator not in ("=", "!="):
                raise Refused(f"nil is only equal or not: {text}")
            return lambda span: (left.of(span) is None) == (operator == "=")
        if left.type != right.type:
            raise Refused(f"a {left.type} is compared with a {right.type}, and never equal: {text}")
        if operator in ("=~", "!~") and left.type != "string":
            raise Refused(f"regular expressions are for strings, not for a {left.type}: {text}")
        if operator[0] in "<>" and left.type not in ORDERED:
            raise Refused(f"a {left.type} has no order: {text}")
        compare, value = COMPARISONS[operator], right.of(None)  # type: ignore[arg-type]

        def holds(span: Span) -> bool:
            ours = left.of(span)
            return ours is not None and compare(ours, value)

        return holds

    def _operand(self, node: Node) -> Operand:
        if node.name == "FieldExpression" and len(node.children) == 1 and node.text == node.children[0].text:
            return self._operand(node.children[0])
        if node.name == "Static":
            return _literal(node)
        return self._field(node)

    def _field(self, node: Node) -> Operand:
        while node.name == "FieldExpression" and len(node.children) == 1:
            node = node.children[0]
        if node.name == "IntrinsicField":
            name = node.text.removeprefix("span:")
            if name not in INTRINSICS:
                raise Refused(f"not known here: {node.text}")
            return Operand(*INTRINSICS[name])
        if node.name != "AttributeField":
            raise Refused(f"not known here: {node.text}")
        scope, _dot, name = node.text.partition(".")
        if scope not in ("span", "resource"):
            raise Refused(f"an attribute's scope is span or resource: {node.text}")
        return self._attribute(scope, name)

    def _attribute(self, scope: str, name: str) -> Operand:
        def of(span: Span) -> Any:
            return (span.attributes if scope == "span" else span.resource).get(name)

        types = {TYPES.get(type(value), "list") for span in self._all if (value := of(span)) is not None}
        if not types:
            raise Refused(f"no span has {scope}.{name}")
        if len(types) > 1 or types == {"list"}:
            raise Refused(f"{scope}.{name} is of no single type, but {sorted(types)}")
        return Operand(types.pop(), of)


def _stages(node: Node) -> Iterable[Node]:
    """The parts of a pipeline, from the left."""
    if node.name == "SpansetPipelineExpression" and len(node.children) == 3:
        left, operator, right = node.children
        if operator.name != "Pipe":
            raise Refused(f"not known here: {operator.text} in {node.text}")
        yield from _stages(left)
        yield from _stages(right)
    elif node.name in ("SpansetPipelineExpression", "SpansetPipeline") and len(node.children) == 1:
        yield from _stages(node.children[0])
    else:
        yield node


def _literal(node: Node) -> Operand:
    kind = node.children[0].name if node.children else None
    text = node.text
    value: Any
    if kind == "String":
        type_, value = "string", text[1:-1]
    elif kind == "Integer":
        type_, value = "int", int(text)
    elif kind == "Float":
        type_, value = "float", float(text)
    elif kind == "Duration":
        type_, value = "duration", _nanoseconds(text)
    elif text in KEYWORDS:
        type_, value = KEYWORDS[text], text == "true" if text in ("true", "false") else text
    else:
        raise Refused(f"not known here: {text}")
    return Operand(type_, lambda _span: value, literal=True)


def _nanoseconds(text: str) -> float:
    number = re.fullmatch(r"([\d.]+)(ns|us|µs|ms|s|m|h)", text)
    if number is None:
        raise Refused(f"not known here: {text}")
    return float(number[1]) * DURATION_UNITS_NS[number[2]]
