"""The evaluator refuses what Tempo would silently answer with nothing, and finds what Tempo would find."""

import pytest

from tests.observability.traceql import evaluate
from tests.observability.traceql_syntax import Refused
from tests.otlp import Span

pytestmark = pytest.mark.observability


def span(name="chat opta-tiny", *, ms=10, status="UNSET", kind="CLIENT", **attributes):
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    service = {"service.name": "opta-router"}
    return Span(name, kind, "t", "s", "", 0, ms * 10**6, status, "", "", named, (), (), service)


FAST = span(opta__lane="interactive", opta__queue_ms=0, opta__spec__acceptance_ratio=0.8, opta__spec__active=True)
SLOW = span(ms=2000, status="ERROR", opta__lane="throughput", opta__queue_ms=700, opta__spec__active=False)
QUEUE = span("opta.queue", kind="INTERNAL", tags=["a"])
SPANS = (FAST, SLOW, QUEUE)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("{ }", SPANS),
        ('{ span.opta.lane = "interactive" }', [FAST]),
        ('{ span.opta.lane != "interactive" }', [SLOW]),
        ('{ span.opta.lane =~ "inter.*|none" }', [FAST]),
        ('{ span.opta.lane =~ "inter" }', []),
        ("{ span.opta.lane = nil }", [QUEUE]),
        ("{ span.opta.lane != nil }", [FAST, SLOW]),
        ("{ span.opta.queue_ms > 0 }", [SLOW]),
        ("{ span.opta.queue_ms >= 0 }", [FAST, SLOW]),
        ("{ span.opta.spec.acceptance_ratio < 0.9 }", [FAST]),
        ("{ span.opta.spec.active = false }", [SLOW]),
        ("{ duration > 1s }", [SLOW]),
        ("{ span:duration > 1500ms }", [SLOW]),
        ("{ status = error && kind = client }", [SLOW]),
        ('{ (status = error || name = "opta.queue") && kind != client }', [QUEUE]),
        ('{ resource.service.name = "opta-router" } | select(span.opta.lane, duration)', SPANS),
    ],
)
def test_finds(query, found):
    assert list(evaluate(query, SPANS).spans) == list(found)


@pytest.mark.parametrize(
    ("query", "series"),
    [
        ("{ } | rate()", {(): SPANS}),
        ("{ } | count_over_time() by (kind)", {("client",): (FAST, SLOW), ("internal",): (QUEUE,)}),
        (
            "{ span.opta.lane != nil } | quantile_over_time(span.opta.queue_ms, 0.5, 0.95) by (span.opta.lane, name)",
            {("interactive", FAST.name): (FAST,), ("throughput", SLOW.name): (SLOW,)},
        ),
        ("{ } | quantile_over_time(duration, 1)", {(): SPANS}),
        ("{ status = error } | avg_over_time(span.opta.spec.acceptance_ratio)", {(): (SLOW,)}),
        ("{ status = ok } | rate() by (span.opta.lane)", {}),
    ],
)
def test_groups(query, series):
    assert evaluate(query, SPANS).series == series


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("{ span.opta.lane = }", "no TraceQL"),
        ("", "no TraceQL"),
        ("{ span.opta.lanes = nil }", "no span has span.opta.lanes"),
        ('{ resource.opta.lane = "interactive" }', "no span has resource.opta.lane"),
        ('{ .opta.lane = "interactive" }', "scope"),
        ("{ span.opta.spec.acceptance_ratio > 0 }", "a float is compared with a int"),
        ("{ span.opta.queue_ms > 0.5 }", "a int is compared with a float"),
        ('{ span.opta.queue_ms = "700" }', "a int is compared with a string"),
        ('{ span.opta.spec.active = "true" }', "a bool is compared with a string"),
        ("{ span.opta.queue_ms > 1s }", "a int is compared with a duration"),
        ("{ duration > 1 }", "a duration is compared with a int"),
        ('{ status = "error" }', "a status is compared with a string"),
        ("{ kind = error }", "a kind is compared with a status"),
        ("{ span.opta.spec.active > false }", "has no order"),
        ('{ span.opta.queue_ms =~ "7.." }', "a int is compared with a string"),
        ('{ "interactive" = span.opta.lane }', "on the left"),
        ("{ span.opta.lane > nil }", "nil is only equal or not"),
        ('{ span.tags = "a" }', "no single type"),
        ("{ } | quantile_over_time(span.opta.spec.acceptance_ratio, 0.5)", "no quantiles of a float"),
        ("{ } | quantile_over_time(span.opta.lane, 0.5)", "no quantiles of a string"),
        ("{ } | quantile_over_time(duration, 95)", "between 0 and 1"),
        ("{ } | sum_over_time(span.opta.lane)", "sum_over_time of a string"),
        ("{ } | rate() by (span.opta.clients)", "no span has span.opta.clients"),
        ("{ } | select(span.opta.clients)", "no span has span.opta.clients"),
        ("{ } | rate() | select(span.opta.lane)", "after a metrics function"),
        ("{ } | rate() / rate()", "no TraceQL"),
        ("{ } >> { }", "not known here"),
        ("{ } | rate() with (most_recent=true)", "hints are not known here"),
        ("{ !(status = error) }", "not known here"),
        ("{ } | count() > 2", "not known here"),
    ],
)
def test_refuses(query, why):
    with pytest.raises(Refused, match=why):
        evaluate(query, SPANS)


def test_an_attribute_of_two_types_is_refused():
    with pytest.raises(Refused, match="no single type"):
        evaluate("{ span.opta.queue_ms > 0 }", [*SPANS, span(opta__queue_ms=0.5)])
