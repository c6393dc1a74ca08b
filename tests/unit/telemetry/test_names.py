"""The table of metrics against what is scraped and what is pushed, and against the contract."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from lanes.wire import PromptCacheStats, SpecCounters
from opta_router.speculation import Outcome, PairReading
from opta_router.telemetry import names
from opta_router.telemetry.histograms import Identity
from opta_router.telemetry.metered import MeteredTrace
from opta_router.telemetry.metrics import OPENMETRICS, PLAIN, start_metrics
from opta_router.telemetry.readings import ConfigurationReading, EngineReading, LaneReading
from opta_router.telemetry.tally import Tally
from opta_router.telemetry.tracing import RequestTrace
from policies.acceptance import GateState, GateView
from policies.schema import TelemetryConfig
from policies.speculation import SpecReason
from tests.unit.telemetry import lives

# As the contract has them, by the names that a dashboard queries; a name here never changes.
CONTRACT = {
    "lmx_spec_draft_accepted_total": {"model", "draft_model"},
    "lmx_spec_draft_rejected_total": {"model", "draft_model"},
    "lmx_spec_draft_ignored_total": {"model", "draft_model"},
    "lmx_spec_acceptance_ratio": {"model", "draft_model"},
    "opta_router_requests_total": {"lane", "model", "outcome", "reason"},
    "opta_router_tokens_total": {"lane", "model", "gen_ai_token_type"},
    "opta_lane_queue_depth": {"lane"},
    "opta_lane_requests_active": {"lane"},
    "opta_lane_weight": {"lane"},
    "opta_lane_device_time_seconds_total": {"lane"},
    "opta_lane_rejections_total": {"lane", "code"},
    "opta_lane_spills_total": {"lane", "code"},
    "opta_host_restarts_total": set(),
    "opta_requests_resumed_total": set(),
    "opta_model_memory_bytes": {"model"},
    "opta_telemetry_dropped_total": {"signal"},
    "opta_lane_queue_duration_seconds": {"lane"},
}
CONTRACT |= {
    "opta_prompt_cache_hits_total": {"model"},
    "opta_prompt_cache_misses_total": {"model"},
    "opta_prompt_cache_reused_tokens_total": {"model"},
    "opta_prompt_cache_evictions_total": {"model"},
    "opta_prompt_cache_memory_bytes": {"model"},
}
SERVED = {"gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "opta_lane"}
CONTRACT |= {
    "gen_ai_server_request_duration_seconds": {*SERVED, "error_type"},
    "gen_ai_server_time_to_first_token_seconds": SERVED,
    "gen_ai_server_time_per_output_token_seconds": SERVED,
}
IDENTITY = Identity(0xABC, 0xDEF)


class Recorded(RequestTrace):
    """A request that is in a trace, too."""

    identity = IDENTITY


HAD = {"device_s": 1.0, "bounded_steps": 2, "late_steps": 1}


@pytest.fixture
def everything(collector):
    """Metrics of which every one has a value."""
    tally = Tally(["opta-tiny"])
    metrics = start_metrics(TelemetryConfig(otlp_endpoint=collector.endpoint), tally)
    lane = LaneReading(weight=1.0, active=1, queued=1, spilled=1, rejected={"queue_full": 1}, **HAD)
    metrics.observe.of_lanes(lambda: {"interactive": lane})
    engine = EngineReading(restarts=1, resumed=1, ready=True, memory_bytes=7, model_bytes={"opta-tiny": 7})
    metrics.observe.of_engine(lambda: engine)
    caches = PromptCacheStats(entries=1, size_bytes=1, hits=1, misses=1, evictions=1, reused_tokens=1)
    metrics.observe.of_prompt_caches(lambda: {"opta-tiny": caches})
    gate = GateView(state=GateState.ON, acceptance_ratio=0.5, compared_tokens=2, retry_in_s=None, switched_off=0)
    decided = Outcome(requested=True, active=True, reason=SpecReason.APPROVED)
    counters = SpecCounters(1, 2, 1, 1, accepted_at=(1, 0), compared_at=(1, 1))
    pair = PairReading(model="opta-tiny", draft="embedded:draft", counters=counters, outcomes={decided: 1}, gate=gate)
    metrics.observe.of_pairs(lambda: [pair])
    metrics.observe.of_configuration(lambda: ConfigurationReading(applied=1, refused=0))
    metrics.observe.of_telemetry(lambda: {"traces": 1, "metrics": 0, "logs": 0})
    trace = MeteredTrace(tally, Recorded())
    lives.to_first_token(trace)
    trace.settled(lives.usage(lives.ending()))
    trace.finished(lives.ending())
    trace.responded(200)
    failed = MeteredTrace(tally, Recorded())
    lives.classify(failed)
    failed.failed("queue_full")
    failed.responded(429)
    yield metrics
    metrics.shutdown()


def families_of(metrics):
    text, content_type = metrics.exposition()
    assert content_type == PLAIN
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def test_the_contracts_metrics_are_in_the_table_with_its_attributes():
    table = {metric.prometheus_name: {name.replace(".", "_") for name in metric.attributes} for metric in names.METRICS}
    assert {name: table.get(name) for name in CONTRACT} == CONTRACT


def test_each_metric_is_scraped_as_the_table_says_and_no_other_is(everything):
    families = families_of(everything)
    del families["target_info"]
    for metric in names.METRICS:
        family = families.pop(metric.prometheus_name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind, metric.description)
        labels = {name.replace(".", "_") for name in metric.attributes}
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == labels
        if metric.kind == "histogram":
            bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
            assert bounds == {*metric.bounds, float("inf")}
        else:
            assert {sample.name for sample in family.samples} == {metric.prometheus_name}
    assert families == {}


def test_each_metric_is_pushed_as_the_table_says_and_no_other_is(everything, collector):
    everything.shutdown()
    table = {metric.name: metric for metric in names.METRICS}
    assert {point.name for point in collector.points} == table.keys()
    for point in collector.points:
        metric = table[point.name]
        assert (point.kind, point.unit) == (metric.kind, metric.unit)
        assert point.attributes.keys() <= set(metric.attributes)
        assert set(metric.attributes) - point.attributes.keys() <= {"error.type"}
        assert [bound for bound, _ in point.buckets] == ([*metric.bounds, float("inf")] if metric.bounds else [])


def test_an_example_of_a_duration_leads_to_its_trace_pushed_and_scraped(everything, collector):
    text, content_type = everything.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type == OPENMETRICS
    families = {family.name: family for family in openmetrics_families(text.decode())}
    everything.shutdown()
    for metric in names.METRICS:
        if metric.kind == "histogram":
            examples = [sample.exemplar for sample in families[metric.prometheus_name].samples if sample.exemplar]
            assert {example.labels["trace_id"] for example in examples} == {f"{IDENTITY.trace_id:032x}"}
            pushed = [
                trace_id for point in collector.points if point.name == metric.name for trace_id in point.exemplars
            ]
            assert set(pushed) == {f"{IDENTITY.trace_id:032x}"}


def test_what_is_read_in_openmetrics_is_what_is_read_in_plain_text(everything):
    text, _ = everything.exposition("application/openmetrics-text")
    richer = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in openmetrics_families(text.decode())
        for sample in family.samples
    }
    plain = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families_of(everything).values()
        for sample in family.samples
    }
    assert richer == plain
