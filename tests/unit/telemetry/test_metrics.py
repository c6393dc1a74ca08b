"""Metrics as they are scraped, and on the wire; collectors that do not take them."""

import logging
import subprocess
import sys
import threading
from importlib.metadata import version

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lanes import wire
from opta_router.speculation import Outcome, PairReading
from opta_router.telemetry import names
from opta_router.telemetry.metrics import Metrics, start_metrics
from opta_router.telemetry.quiet_logs import LOGGERS
from opta_router.telemetry.readings import LaneReading
from opta_router.telemetry.tally import Tally
from policies.acceptance import GateState, GateView
from policies.quantities import Secret
from policies.schema import TelemetryConfig
from policies.speculation import SpecReason
from tests.otlp import black_hole, refusing

BOTH = ("false", "true")


class Lanes:
    """Two lanes whose numbers a test sets."""

    def __init__(self):
        self.interactive = {"active": 1, "device_s": 2.5, "rejected": {"queue_full": 3, "deadline": 0}}
        self.throughput = {"queued": 7, "spilled": 4, "weight": 0.5, "bounded_steps": 100, "late_steps": 3}

    def __call__(self):
        none = {
            "weight": 8.0,
            "active": 0,
            "queued": 0,
            "spilled": 0,
            "rejected": {},
            "device_s": 0.0,
            "bounded_steps": 0,
            "late_steps": 0,
        }
        return {
            "interactive": LaneReading(**{**none, **self.interactive}),
            "throughput": LaneReading(**{**none, **self.throughput}),
        }


def sending_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("OtelPeriodic")]


def scraped(metrics):
    """Samples by name and labels."""
    families = text_string_to_metric_families(metrics.exposition()[0].decode())
    samples = [sample for family in families for sample in family.samples if sample.name != "target_info"]
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def of_lane(samples, lane):
    """The samples of one lane without a code, but for its histogram."""
    return {
        name: value
        for (name, *labels), value in samples.items()
        if labels == [("lane", lane)] and "queue_duration" not in name
    }


@pytest.fixture
def lanes():
    return Lanes()


@pytest.fixture
def scraped_only(lanes):
    metrics = start_metrics(TelemetryConfig(), Tally(()))
    metrics.observe.of_lanes(lanes)
    yield metrics
    metrics.shutdown()


def test_each_lane_is_scraped_under_the_contracts_names(scraped_only):
    samples = scraped(scraped_only)
    of_bounded = {late: ("opta_lane_steps_bounded_total", ("lane", "throughput"), ("late", late)) for late in BOTH}
    assert {late: samples[name] for late, name in of_bounded.items()} == {"false": 97, "true": 3}
    assert of_lane(samples, "interactive") == {
        "opta_lane_queue_depth": 0,
        "opta_lane_requests_active": 1,
        "opta_lane_weight": 8,
        "opta_lane_device_time_seconds_total": 2.5,
    }
    assert of_lane(samples, "throughput") == {
        "opta_lane_queue_depth": 7,
        "opta_lane_requests_active": 0,
        "opta_lane_weight": 0.5,
        "opta_lane_device_time_seconds_total": 0,
    }


def test_each_pairs_speculation_is_scraped_under_the_contracts_names():
    metrics = start_metrics(TelemetryConfig(), Tally(()))
    gate = GateView(state=GateState.OFF, acceptance_ratio=0.25, compared_tokens=40, retry_in_s=9.0, switched_off=1)
    low = Outcome(requested=True, active=False, reason=SpecReason.LOW_ACCEPTANCE)
    drafted = wire.SpecCounters(8, 32, 8, 24, compared_at=(24, 8), accepted_at=(8,))
    looked_up = wire.SpecCounters(3, 12, 2, 6, 4, 3, 12, 2, 6, compared_at=(6, 2), accepted_at=(2,))
    counters = drafted + looked_up
    pair = PairReading(model="m", draft="d", counters=counters, outcomes={low: 3}, gate=gate)
    fresh = msgspec.structs.replace(gate, state=GateState.ON, acceptance_ratio=None)
    plain = PairReading(model="p", draft=None, counters=wire.SpecCounters(), outcomes={}, gate=fresh)
    metrics.observe.of_pairs(lambda: [pair, plain])
    labels = (("draft_model", "d"), ("model", "m"))
    decided = (("active", "false"), *labels, ("reason", "low_acceptance"), ("requested", "true"))
    assert {name: value for name, value in scraped(metrics).items() if "_spec_" in name[0]} == {
        ("lmx_spec_draft_accepted_total", *labels): 10,
        ("lmx_spec_draft_rejected_total", *labels): 30,
        ("lmx_spec_draft_ignored_total", *labels): 4,
        ("lmx_spec_acceptance_ratio", *labels): 0.25,
        ("opta_spec_draft_proposed_total", *labels): 44,
        ("opta_spec_rounds_total", *labels): 11,
        ("opta_spec_lookup_rounds_total", *labels): 3,
        ("opta_spec_lookup_proposed_total", *labels): 12,
        ("opta_spec_lookup_accepted_total", *labels): 2,
        ("opta_spec_position_compared_total", *labels, ("position", "1")): 30,
        ("opta_spec_position_compared_total", *labels, ("position", "2")): 10,
        ("opta_spec_position_accepted_total", *labels, ("position", "1")): 10,
        ("opta_spec_requests_total", *decided): 3,
        ("opta_spec_low_acceptance", *labels): 1,
    }
    pair = msgspec.structs.replace(pair, gate=fresh)
    assert ("lmx_spec_acceptance_ratio", *labels) not in scraped(metrics), "nothing was compared"
    assert scraped(metrics)["opta_spec_low_acceptance", *labels] == 0
    metrics.shutdown()


def test_each_scrape_says_what_is_true_then(scraped_only, lanes):
    scraped(scraped_only)
    lanes.interactive |= {"device_s": 4.0, "active": 0}
    found = of_lane(scraped(scraped_only), "interactive")
    assert (found["opta_lane_device_time_seconds_total"], found["opta_lane_requests_active"]) == (4.0, 0)
    assert scraped(scraped_only) == scraped(scraped_only)


def test_a_scrape_says_whose_metrics_they_are_and_nothing_of_the_process(scraped_only):
    families = {family.name: family for family in text_string_to_metric_families(scraped_only.exposition()[0].decode())}
    ours = {metric.prometheus_name.removesuffix("_total") for metric in names.METRICS}
    assert families.keys() - ours == {"target_info"}
    assert families["target_info"].samples[0].labels["service_name"] == "opta-router"


def test_without_an_endpoint_no_thread_is_started(scraped_only):
    assert sending_threads() == []


def test_two_routers_in_one_process_do_not_see_each_others_metrics(scraped_only):
    other = start_metrics(TelemetryConfig(), Tally(()))
    assert of_lane(scraped(other), "interactive") == {}
    other.shutdown()
    assert of_lane(scraped(scraped_only), "interactive") != {}


def test_what_is_pushed_is_what_is_scraped(collector, lanes, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-from=environment,x-both=environment")
    headers = {"x-key": Secret("k"), "X-Both": Secret("configuration")}
    metrics = start_metrics(TelemetryConfig(otlp_endpoint=collector.endpoint, otlp_headers=headers), Tally(()))
    metrics.observe.of_lanes(lanes)
    metrics.shutdown()
    metrics.shutdown()
    ((path, sent),) = collector.requests
    assert path == "/v1/metrics"
    assert (sent["x-key"], sent["x-from"], sent["x-both"]) == ("k", "environment", "configuration")
    found = {(point.name, *sorted(point.attributes.items())): point.value for point in collector.points}
    assert found["opta.lane.device_time", ("lane", "interactive")] == 2.5
    assert found["opta.lane.rejections", ("code", "queue_full"), ("lane", "interactive")] == 3
    assert len(found) == len(collector.points) == 16
    (resource,) = {tuple(sorted(point.resource.items())) for point in collector.points}
    assert ("service.name", "opta-router") in resource
    assert ("service.version", version("opta-router")) in resource
    assert sending_threads() == []


def test_what_is_pushed_in_between_goes_on_from_what_was_pushed_before(collector, lanes, monkeypatch):
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    metrics = start_metrics(TelemetryConfig(otlp_endpoint=collector.endpoint), Tally(()))
    metrics.observe.of_lanes(lanes)
    for device_s in (3.0, 4.0):
        lanes.interactive["device_s"] = device_s
        with collector.changed:
            assert collector.changed.wait_for(lambda: lanes.interactive["device_s"] in device_times(collector), 20)
    metrics.shutdown()
    assert device_times(collector) == sorted(device_times(collector))


def device_times(collector):
    return [
        point.value
        for point in collector.points
        if point.name == "opta.lane.device_time" and point.attributes == {"lane": "interactive"}
    ]


@pytest.mark.timeout(30)
def test_a_collector_that_refuses_costs_one_line_and_counted_points_and_scrapes_go_on(
    caplog, lanes, fresh_limit, monkeypatch
):
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "20")
    caplog.set_level(logging.WARNING)
    with refusing() as endpoint:
        metrics = start_metrics(TelemetryConfig(otlp_endpoint=endpoint), Tally(()))
        metrics.observe.of_lanes(lanes)
        while metrics.dropped_points == 0:
            assert of_lane(scraped(metrics), "interactive")["opta_lane_requests_active"] == 1
        metrics.shutdown()
        for thread in sending_threads():
            thread.join()
    assert metrics.dropped_points % 16 == 0  # what two lanes have
    assert len([record for record in caplog.records if record.name in LOGGERS]) == 1


@pytest.mark.timeout(60)
def test_a_collector_that_never_answers_holds_up_neither_shutdown_nor_exit():
    program = """
import sys
from opta_router.telemetry.metrics import start_metrics
from opta_router.telemetry.tally import Tally
from policies.schema import TelemetryConfig
metrics = start_metrics(TelemetryConfig(otlp_endpoint=sys.argv[1]), Tally(()))
metrics.observe.of_lanes(lambda: {})
metrics.shutdown()
print("over")
"""
    with black_hole() as endpoint:
        command = [sys.executable, "-c", program, endpoint]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (0, "over\n")
    assert "Traceback" not in done.stderr


def test_a_reader_that_fails_spoils_neither_the_scrape_nor_the_router():
    metrics = Metrics(TelemetryConfig(), None, Tally(()))

    def fails():
        raise RuntimeError("no lanes")

    metrics.observe.of_lanes(fails)
    assert of_lane(scraped(metrics), "interactive") == {}
    metrics.shutdown()
