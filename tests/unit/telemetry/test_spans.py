"""The tree of a request, as a collector sees it."""

import itertools
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from opta_router.request import SamplingParams
from opta_router.telemetry import NO_TRACE, Tracing
from opta_router.telemetry.span_data import SpanBook
from opta_router.telemetry.spans import SpanTrace
from opta_router.telemetry.told import ToldTrace
from tests.unit.telemetry import lives

SERVER = f"POST {lives.ROUTE}"
CLIENT = "chat opta-tiny"
TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def typed(attributes):
    """What equality alone cannot tell apart: 1, 1.0 and True."""
    return {name: (type(value), value) for name, value in attributes.items()}


def test_a_finished_request_is_one_tree(tracing, collector):
    trace = lives.begin(tracing)
    lives.to_first_token(trace)
    trace.finished(lives.ending())
    trace.responded(200)
    tracing.shutdown()

    server, client = collector.one(SERVER), collector.one(CLIENT)
    queue, decode = collector.one("opta.queue"), collector.one("opta.decode")
    assert [span.kind for span in (server, client, queue, decode)] == ["SERVER", "CLIENT", "INTERNAL", "INTERNAL"]
    assert server.parent_id == ""
    assert collector.children(server) == [CLIENT]
    assert collector.children(client) == ["opta.queue", "opta.decode"]
    assert len({span.trace_id for span in collector.spans}) == 1
    assert {span.status for span in collector.spans} == {"UNSET"}

    (admitted,) = queue.events
    (first_token,) = client.events
    assert (admitted.name, first_token.name, decode.events) == ("opta.lane.admitted", "gen_ai.first_token", ())
    assert admitted.attributes == {"opta.lane": "interactive", "opta.lane.reason": "auto:room"}
    moments = [server.start_ns, client.start_ns, queue.start_ns, admitted.time_ns, queue.end_ns, decode.start_ns]
    moments += [first_token.time_ns, decode.end_ns, client.end_ns, server.end_ns]
    assert moments == sorted(moments)


def test_attributes_have_the_names_and_types_of_the_contract(tracing, collector):
    trace = lives.begin(tracing, user_agent="openclaw/1")
    lives.to_first_token(trace)
    trace.finished(lives.ending(resumed=2))
    trace.responded(200)
    tracing.shutdown()

    assert typed(collector.one(SERVER).attributes) == typed(
        {
            "http.request.method": "POST",
            "http.route": lives.ROUTE,
            "http.response.status_code": 200,
            "url.path": lives.ROUTE,
            "url.scheme": "http",
            "client.address": "192.0.2.7",
            "network.protocol.version": "2",
            "user_agent.original": "openclaw/1",
        }
    )
    attributes = dict(collector.one(CLIENT).attributes)
    assert type(attributes.pop("gen_ai.latency.e2e")) is float
    assert typed(attributes) == typed(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "opta_router",
            "gen_ai.request.id": "r-1",
            "gen_ai.request.model": "auto",
            "gen_ai.response.model": "opta-tiny",
            "gen_ai.request.stream": True,
            "gen_ai.request.max_tokens": 64,
            "gen_ai.request.temperature": 1.0,
            "gen_ai.request.top_p": 1.0,
            "gen_ai.request.top_k": 40.0,
            "gen_ai.request.seed": 7,
            "gen_ai.request.presence_penalty": 0.0,
            "gen_ai.request.frequency_penalty": 1.0,
            "gen_ai.request.stop_sequences": ["END", "STOP"],
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.usage.output_tokens": 34,
            "gen_ai.usage.cache_read.input_tokens": 5,
            "gen_ai.latency.time_in_queue": 0.003,
            "gen_ai.latency.time_to_first_token": 0.0217,
            "opta.lane": "interactive",
            "opta.lane.reason": "auto:room",
            "opta.lane.hint": "x-opta-lane=auto",
            "opta.preset": "chat",
            "opta.client": "openclaw",
            "opta.sub_client": "main",
            "opta.queue_ms": 3,
            "opta.ttft_ms": 22,
            "opta.resumed": 2,
            "opta.spec.requested": True,
            "opta.spec.active": True,
            "opta.spec.reason": "approved",
            "opta.spec.telemetry": "native",
            "opta.spec.draft.model": "embedded:draft",
            "opta.spec.rounds": 41,
            "opta.spec.draft.proposed_tokens": 164,
            "opta.spec.draft.accepted_tokens": 118,
            "opta.spec.draft.rejected_tokens": 43,
            "opta.spec.draft.ignored_tokens": 3,
            "opta.spec.acceptance_ratio": 1.0,
        }
    )


def test_what_speculation_did_not_count_is_absent_and_not_zero(tracing, collector):
    trace = lives.begin(tracing)
    lives.to_first_token(trace)
    trace.finished(lives.ending(lives.NOT_SPECULATED))
    trace.responded(200)
    tracing.shutdown()
    spec = {name: value for name, value in collector.one(CLIENT).attributes.items() if name.startswith("opta.spec.")}
    spec.pop("opta.spec.draft.model")
    assert spec == {"opta.spec.requested": True, "opta.spec.active": False, "opta.spec.reason": "lane"}


def test_a_seed_too_large_for_the_wire_is_left_out_without_a_word(tracing, collector, caplog):
    trace = lives.begin(tracing)
    lives.classify(trace, request=msgspec.structs.replace(lives.REQUEST, sampling=SamplingParams(seed=2**63)))
    trace.cancelled()
    trace.responded(None)
    tracing.shutdown()
    assert "gen_ai.request.seed" not in collector.one(CLIENT).attributes
    assert caplog.messages == []


def test_prompt_and_keys_are_nowhere_in_a_trace(tracing, collector):
    trace = lives.begin(tracing, authorization="canary-key", cookie="canary-cookie", tracestate="v=canary")
    lives.to_first_token(trace)
    trace.finished(lives.ending())
    trace.responded(200)
    tracing.shutdown()
    assert len(collector.spans) == 4
    assert "canary" not in repr(collector.spans)


def test_a_resumption_is_a_second_decode_linked_to_the_first(tracing, collector):
    trace = lives.begin(tracing)
    lives.to_first_token(trace)
    trace.interrupted()
    trace.resumed(emitted_tokens=17)
    trace.first_token()
    trace.resumed(emitted_tokens=20)
    trace.cancelled()
    trace.responded(None)
    tracing.shutdown()

    first, second, third = collector.named("opta.decode")
    assert first.links == ()
    assert second.links == third.links == (first.span_id,)
    assert [span.attributes.get("error.type") for span in (first, second, third)] == ["engine_died"] * 2 + [None]
    assert [(event.name, event.attributes) for event in second.events + third.events] == [
        ("opta.resumed", {"opta.resumed": 1, "opta.resumed.emitted_tokens": 17}),
        ("opta.resumed", {"opta.resumed": 2, "opta.resumed.emitted_tokens": 20}),
    ]
    client = collector.one(CLIENT)
    assert client.attributes["opta.resumed"] == 2
    assert [event.name for event in client.events] == ["gen_ai.first_token"]
    assert first.end_ns <= second.start_ns <= second.end_ns <= third.start_ns


def test_an_answer_that_moves_to_the_other_lane_says_when(tracing, collector):
    trace = lives.begin(tracing)
    lives.to_first_token(trace)
    trace.demoted("throughput", 512)
    trace.finished(lives.ending())
    trace.responded(200)
    tracing.shutdown()
    client = collector.one(CLIENT)
    assert (client.attributes["opta.demoted"], client.attributes["opta.demoted.emitted_tokens"]) == (True, 512)
    assert client.attributes["opta.lane"] == "interactive"
    (event,) = collector.one("opta.decode").events
    assert (event.name, event.attributes) == (
        "opta.lane.demoted",
        {"opta.lane": "throughput", "opta.demoted.emitted_tokens": 512},
    )


def test_a_request_that_fails_in_the_queue_says_where_and_why(tracing, collector):
    trace = lives.begin(tracing)
    lives.classify(trace)
    trace.queued()
    trace.failed("deadline")
    trace.responded(503)
    tracing.shutdown()
    for name in (SERVER, CLIENT, "opta.queue"):
        span = collector.one(name)
        assert (span.status, span.status_message, span.attributes["error.type"]) == ("ERROR", "", "deadline")
    assert collector.one("opta.queue").events == ()
    client = collector.one(CLIENT).attributes
    assert client["opta.lane"] == "auto"
    assert not {"opta.queue_ms", "opta.ttft_ms", "gen_ai.latency.time_in_queue"} & client.keys()


@pytest.mark.parametrize(
    ("code", "status", "server_status", "error_type"),
    [
        ("queue_full", 429, "UNSET", "queue_full"),
        ("engine_died", 200, "ERROR", "engine_died"),  # in-band, after the first byte
        ("engine_error", 500, "ERROR", "engine_error"),
        (None, 500, "ERROR", "500"),
        (None, 404, "UNSET", None),
    ],
)
def test_the_server_span_is_an_error_when_it_is_ours(tracing, collector, code, status, server_status, error_type):
    trace = lives.begin(tracing)
    if code is not None:
        trace.failed(code)
    trace.responded(status)
    tracing.shutdown()
    server = collector.one(SERVER)
    assert (server.status, server.attributes.get("error.type")) == (server_status, error_type)
    assert server.attributes["http.response.status_code"] == status


def test_cancellation_is_not_an_error_even_if_cleaning_up_fails(tracing, collector):
    trace = lives.begin(tracing)
    lives.to_first_token(trace)
    trace.cancelled()
    trace.failed("internal_error")
    trace.responded(None)
    tracing.shutdown()
    assert {span.status for span in collector.spans} == {"UNSET"}
    assert not [span.name for span in collector.spans if "error.type" in span.attributes]
    client = collector.one(CLIENT).attributes
    assert client["gen_ai.response.finish_reasons"] == ["cancelled"]
    assert {name: type(client[name]) for name in ("opta.queue_ms", "opta.ttft_ms", "gen_ai.latency.time_in_queue")} == {
        "opta.queue_ms": int,
        "opta.ttft_ms": int,
        "gen_ai.latency.time_in_queue": float,
    }


def test_the_clients_span_is_the_parent(tracing, collector):
    lives.begin(tracing, traceparent=f"00-{TRACE_ID}-{SPAN_ID}-00", tracestate="v=1", baggage="a=b").responded(200)
    tracing.shutdown()
    server = collector.one(SERVER)
    assert (server.trace_id, server.parent_id, server.trace_state) == (TRACE_ID, SPAN_ID, "")


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "garbage",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01, 00-{TRACE_ID}-{SPAN_ID}-01",
        f"01-{TRACE_ID}-{SPAN_ID}-01-" + "x" * 600,
    ],
)
def test_a_malformed_traceparent_is_ignored_without_a_word(tracing, collector, caplog, traceparent):
    lives.begin(tracing, traceparent=traceparent).responded(200)
    tracing.shutdown()
    server = collector.one(SERVER)
    assert server.trace_id != TRACE_ID
    assert server.parent_id == ""
    assert caplog.messages == []


def test_a_wall_clock_that_jumps_does_not_bend_a_trace(tracing, collector, monkeypatch):
    trace = lives.begin(tracing)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    lives.to_first_token(trace)
    trace.finished(lives.ending())
    trace.responded(200)
    tracing.shutdown()
    assert all(0 < span.start_ns <= span.end_ns for span in collector.spans)
    assert len(collector.spans) == 4


# every order


CALLS = {
    "classified": lives.classify,
    "queued": lambda trace: trace.queued(),
    "admitted": lambda trace: trace.admitted("throughput", "auto:busy"),
    "dispatched": lambda trace: trace.dispatched(lives.no_usage),
    "first_token": lambda trace: trace.first_token(),
    "interrupted": lambda trace: trace.interrupted(),
    "resumed": lambda trace: trace.resumed(3),
    "demoted": lambda trace: trace.demoted("throughput", 3),
    "finished": lambda trace: trace.finished(lives.ending()),
    "failed": lambda trace: trace.failed("engine_error"),
    "failed, known": lambda trace: trace.failed("engine_error", lives.ending().opta),
    "cancelled": lambda trace: trace.cancelled(),
    "responded": lambda trace: trace.responded(200),
}
IN_ORDER = ["classified", "queued", "admitted", "dispatched", "first_token", "interrupted", "resumed"]


@settings(deadline=None, max_examples=200)
@given(
    in_order=st.integers(0, len(IN_ORDER)),
    then=st.lists(st.sampled_from(sorted(CALLS)), max_size=12),
    status=st.sampled_from([None, 200, 429, 500]),
)
def test_whatever_is_told_every_span_ends_once_inside_its_parent(in_order, then, status):
    kept = []
    trace = ToldTrace("server", {}, None, kept.append)
    for call in IN_ORDER[:in_order] + then:
        CALLS[call](trace)
    trace.responded(status)
    for call in then:
        CALLS[call](trace)
    assert kept == [trace]
    spans = {span.context.span_id: span for span in trace.spans(Resource({}), InstrumentationScope("test"))}
    book = SpanBook(Resource({}), InstrumentationScope("test"))
    again = SpanTrace(book, book.start("server", None, SpanKind.SERVER, 0), itertools.count().__next__)
    for call in [*IN_ORDER[:in_order], *then, "responded"]:
        CALLS[call](again)
    assert book.open == 0
    assert {span.context.trace_id for span in spans.values()} == {trace.identity.trace_id}
    for span in spans.values():
        if span.parent is None:
            assert span.context.span_id == trace.identity.span_id
        else:
            parent = spans[span.parent.span_id]
            assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time


def test_tracing_that_is_off_takes_every_call():
    tracing = Tracing()
    trace = lives.begin(tracing)
    for call in CALLS.values():
        call(trace)
    assert trace is NO_TRACE
    assert tracing.shutdown()
    assert (tracing.enabled, tracing.dropped_traces) == (False, 0)
