"""Traces of real requests, as a collector receives them over OTLP, and collectors that are not there."""

import json

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from opta_router.telemetry import names
from tests.e2e.processes import eventually
from tests.e2e.router_process import router
from tests.otlp import collecting

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{PARENT_ID}-01"
CANARY = "canary_in_the_prompt"
BODY = {"model": "auto", "prompt": f"def {CANARY}(path):\n", "max_tokens": 48, "temperature": 0}
SPEC = "opta.spec.draft."
DURATION = "gen_ai_server_request_duration_seconds"
ECHO = "models: [{name: echo, target: 'scripted:', preload: true}]\n"


@pytest.fixture(scope="module")
def collector():
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector, tmp_path_factory):
    config = f"telemetry: {{otlp_endpoint: '{collector.endpoint}', max_traces_per_s: 1000}}"
    # By default spans are sent every five seconds, and metrics every minute.
    often = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
    with router(tmp_path_factory.mktemp("traced"), config, often) as running:
        yield running


@pytest.fixture
def arrived(collector):
    """The spans of one request, by name, once its last one is there."""

    def wait(trace_id=None, request_id=None):
        def of_request(spans):
            if trace_id is None:
                ids = {span.trace_id for span in spans if span.attributes.get("gen_ai.request.id") == request_id}
            else:
                ids = {trace_id}
            return [span for span in spans if span.trace_id in ids]

        spans = collector.wait_for(lambda spans: any(span.kind == "SERVER" for span in of_request(spans)))
        found = of_request(spans)
        assert len({span.name for span in found}) == len(found)
        return {span.name: span for span in found}

    return wait


def test_a_request_is_the_contracts_tree_with_the_same_counts_as_its_answer(traced, arrived):
    answer = traced.post(TEXT, BODY, traceparent=TRACEPARENT, x_opta_lane="interactive", x_client_id="agent-7").json()
    spans = arrived(trace_id=TRACE_ID)
    assert set(spans) == {f"POST {TEXT}", "text_completion opta-tiny", "opta.queue", "opta.decode"}
    server, client = spans[f"POST {TEXT}"], spans["text_completion opta-tiny"]
    assert (server.kind, server.parent_id, server.status) == ("SERVER", PARENT_ID, "UNSET")
    assert (client.kind, client.parent_id, client.status) == ("CLIENT", server.span_id, "UNSET")
    assert {spans[name].parent_id for name in ("opta.queue", "opta.decode")} == {client.span_id}
    assert [event.name for event in spans["opta.queue"].events] == ["opta.lane.admitted"]
    assert [event.name for event in client.events] == ["gen_ai.first_token"]

    opta, usage, found = answer["opta"], answer["usage"], client.attributes
    speculative = opta["speculative"]
    assert (found["opta.lane"], found["opta.lane.reason"]) == (opta["lane"], opta["route"])
    assert found["opta.lane.hint"] == "x-opta-lane=interactive"
    assert (found["opta.queue_ms"], found["opta.ttft_ms"]) == (round(opta["queue_ms"]), round(opta["ttft_ms"]))
    assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert found["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert found["gen_ai.response.finish_reasons"] == [answer["choices"][0]["finish_reason"]]
    assert (found["opta.spec.requested"], found["opta.spec.active"]) == (True, True)
    assert (found["opta.spec.reason"], found["opta.spec.telemetry"]) == ("approved", "native")
    assert found["opta.spec.rounds"] == speculative["rounds"]
    for count in ("proposed", "accepted", "rejected", "ignored"):
        assert found[f"{SPEC}{count}_tokens"] == speculative[count]
    assert found.get("opta.spec.acceptance_ratio") == speculative.get("acceptance_ratio")
    assert server.attributes["http.response.status_code"] == 200
    assert CANARY not in repr(spans)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_every_complete_answer_is_told_as_complete(traced, arrived, stream):
    body = {**BODY, "max_tokens": 2, "stream": stream}
    request_ids = [f"complete-{stream}-{number}" for number in range(10)]
    for request_id in request_ids:
        assert traced.post(TEXT, body, x_request_id=request_id).status_code == 200
    for request_id in request_ids:
        client = arrived(request_id=request_id)["text_completion opta-tiny"]
        assert client.attributes["gen_ai.response.finish_reasons"] == ["length"]
        assert client.attributes["gen_ai.usage.output_tokens"] == 2


def families_of(running):
    """What is scraped as OpenMetrics, by name."""
    openmetrics = running.get("/metrics", accept="application/openmetrics-text")
    return {family.name: family for family in text_string_to_metric_families(openmetrics.text)}


def sample(families, name, series, **labels):
    """The sum of one series of a family over all other labels."""
    return sum(
        one.value for one in families[name].samples if one.name == series and labels.items() <= one.labels.items()
    )


def test_what_is_counted_is_what_was_answered(traced):
    before = families_of(traced)
    answer = traced.post(TEXT, BODY, x_opta_lane="throughput").json()
    served = {"gen_ai_request_model": "opta-tiny", "opta_lane": "throughput", "error_type": ""}

    def grown(name, series, **labels):
        return sample(families_of(traced), name, series, **labels) - sample(before, name, series, **labels)

    # A request is over when its last byte is on its way, so its client may be quicker.
    eventually(lambda: grown(DURATION, f"{DURATION}_count", **served) == 1)
    batched, usage = {"lane": "throughput", "model": "opta-tiny"}, answer["usage"]
    for kind, tokens in (("input", usage["prompt_tokens"]), ("output", usage["completion_tokens"])):
        assert grown("opta_router_tokens", "opta_router_tokens_total", **batched, gen_ai_token_type=kind) == tokens
    assert grown("opta_router_requests", "opta_router_requests_total", **batched, outcome="ok") == 1
    (resident,) = (model["reserved_bytes"] for model in traced.get("/admin/models").json()["models"])
    assert (
        sample(families_of(traced), "opta_model_memory_bytes", "opta_model_memory_bytes", model="opta-tiny") == resident
    )


def test_every_metric_of_the_table_is_scraped_and_pushed_and_no_other_and_examples_lead_to_traces(traced, collector):
    assert traced.post(TEXT, BODY, x_opta_lane="interactive").status_code == 200
    families = families_of(traced)
    table = {metric.prometheus_name.removesuffix("_total"): metric for metric in names.METRICS}
    assert families.keys() == table.keys() | {"target"}
    assert {name: families[name].type for name in table} == {name: metric.kind for name, metric in table.items()}
    eventually(lambda: {point.name for point in collector.points} == {metric.name for metric in names.METRICS})
    exemplars = {
        *(one.exemplar.labels["trace_id"] for one in families[DURATION].samples if one.exemplar),
        *(trace_id for point in collector.points for trace_id in point.exemplars),
    }
    assert exemplars
    collector.wait_for(lambda spans: exemplars <= {span.trace_id for span in spans})


def test_the_throughput_lane_says_why_it_did_not_speculate(traced, arrived):
    body = {"model": "auto", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 4}
    answer = traced.post(CHAT, body, x_request_id="batched", x_opta_lane="throughput")
    assert answer.status_code == 200
    found = arrived(request_id="batched")["chat opta-tiny"].attributes
    assert (found["opta.lane"], found["opta.spec.active"], found["opta.spec.reason"]) == ("throughput", False, "lane")
    assert f"{SPEC}proposed_tokens" not in found


def test_a_refused_request_has_a_server_span_alone_and_it_is_no_fault_of_ours(traced, arrived):
    trace_id = "5" * 32
    answer = traced.post(TEXT, {"model": "auto"}, traceparent=f"00-{trace_id}-{PARENT_ID}-01")
    assert answer.status_code == 400
    (server,) = arrived(trace_id=trace_id).values()
    assert (server.kind, server.status) == ("SERVER", "UNSET")
    assert (server.attributes["http.response.status_code"], server.attributes["error.type"]) == (
        400,
        "missing_required_parameter",
    )


def test_a_client_that_leaves_is_told_as_cancelled(traced, arrived):
    without_end = {"0": -100, "4": -100}  # the embedded target's end tokens
    with (
        traced.sdk(**{"X-Request-Id": "left"}) as client,
        client.completions.create(
            model="auto", prompt="def f(", stream=True, max_tokens=4000, logit_bias=without_end
        ) as stream,
    ):
        next(iter(stream))
    span = arrived(request_id="left")["text_completion opta-tiny"]
    assert (span.attributes["gen_ai.response.finish_reasons"], span.status) == (["cancelled"], "UNSET")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_prompt_and_answer_are_in_the_trace_where_that_is_asked_for(tmp_path, collector, stream):
    config = f"{ECHO}telemetry: {{otlp_endpoint: '{collector.endpoint}', record_content: true}}\n"
    with router(tmp_path, config) as running:
        body = {"model": "echo", "messages": [{"role": "user", "content": CANARY}], "max_tokens": 64, "stream": stream}
        assert running.post(CHAT, body, x_request_id=f"content-{stream}").status_code == 200
        assert running.end() == 0
    (found,) = (
        span.attributes for span in collector.spans if span.attributes.get("gen_ai.request.id") == f"content-{stream}"
    )
    assert json.loads(found["gen_ai.input.messages"])[0]["parts"] == [{"type": "text", "content": CANARY}]
    (answered,) = json.loads(found["gen_ai.output.messages"])
    assert answered["parts"] == [{"type": "text", "content": CANARY}]
