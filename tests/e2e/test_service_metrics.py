"""Metrics of a router that works: scraped over HTTP and pushed over OTLP."""

import os
import signal

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.processes import eventually
from tests.e2e.router_process import ANSWER_DEADLINE_S, router
from tests.otlp import collecting

TEXT = "/v1/completions"
ECHO = """
models:
  - {name: echo, target: "scripted:tokens_per_step=1,step_s=0.002", preload: true}
lanes:
  interactive: {weight: 8, max_active: 1, max_queue: 0}
  throughput: {weight: 2, max_active: 4}
"""
BODY = {"model": "echo", "prompt": "ab", "max_tokens": 50}


@pytest.fixture(scope="module")
def collector():
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def measured(collector, tmp_path_factory):
    config = f"{ECHO}telemetry: {{otlp_endpoint: '{collector.endpoint}'}}"
    with router(tmp_path_factory.mktemp("measured"), config, {"OTEL_METRIC_EXPORT_INTERVAL": "100"}) as running:
        yield running


def scraped(running):
    """Samples by name and label values."""
    answer = running.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def device_s(running, lane):
    return scraped(running)["opta_lane_device_time_seconds_total", lane]


def pushed(collector, name, **attributes):
    """What was pushed of one metric, in order."""
    with collector.changed:
        return [point.value for point in collector.points if (point.name, point.attributes) == (name, attributes)]


def streaming(running):
    """A request that holds the interactive lane's slot until its stream is left."""
    return httpx.stream(
        "POST",
        running.url + TEXT,
        json={**BODY, "max_tokens": 1_000_000, "stream": True},
        headers={"X-Opta-Lane": "interactive"},
        timeout=ANSWER_DEADLINE_S,
        trust_env=False,
    )


def test_device_time_is_counted_by_lane_and_is_the_one_that_operators_are_shown(measured, collector):
    before_s = device_s(measured, "interactive")
    assert measured.post(TEXT, BODY, x_opta_lane="interactive").status_code == 200
    eventually(lambda: device_s(measured, "interactive") >= before_s + 0.1)  # 50 steps of 2 ms
    shown = measured.get("/admin/lanes").json()
    for lane in ("interactive", "throughput"):
        assert device_s(measured, lane) == pytest.approx(shown[lane]["device_s"], abs=0.001)
    name, now_s = "opta.lane.device_time", device_s(measured, "interactive")
    eventually(lambda: pushed(collector, name, lane="interactive")[-1:] == [now_s])


def test_a_request_in_the_lane_a_full_lane_and_a_new_weight_are_scraped(measured, collector):
    before = scraped(measured)
    with streaming(measured) as stream:
        assert stream.status_code == 200
        assert measured.post(TEXT, BODY, x_opta_lane="interactive").status_code == 429
        httpx.patch(f"{measured.url}/admin/lanes/throughput", json={"weight": 3}, trust_env=False)
        during = scraped(measured)
    assert during["opta_lane_requests_active", "interactive"] == before["opta_lane_requests_active", "interactive"] + 1
    rejections = ("opta_lane_rejections_total", "queue_full", "interactive")
    assert during[rejections] == before[rejections] + 1
    weights = [of_all["opta_lane_weight", "throughput"] for of_all in (before, during)]
    assert weights == [2, 3]
    eventually(lambda: scraped(measured)["opta_lane_requests_active", "interactive"] == 0)
    code = {"lane": "interactive", "code": "queue_full"}
    eventually(lambda: pushed(collector, "opta.lane.rejections", **code)[-1:] == [during[rejections]])


def test_the_device_time_does_not_go_back_when_a_host_dies(measured):
    assert measured.post(TEXT, BODY, x_opta_lane="throughput").status_code == 200
    eventually(lambda: device_s(measured, "throughput") >= 0.1)
    before_s = device_s(measured, "throughput")
    os.kill(measured.host_pid(), signal.SIGKILL)
    eventually(lambda: measured.get("/readyz").status_code == 503)
    assert device_s(measured, "throughput") >= before_s
    eventually(lambda: measured.get("/readyz").status_code == 200)
    assert measured.post(TEXT, BODY, x_opta_lane="throughput").status_code == 200
    eventually(lambda: device_s(measured, "throughput") >= before_s + 0.1)


def test_metrics_are_guarded_like_the_rest(measured):
    assert measured.get("/metrics", host="evil.example").status_code == 421
    assert measured.post("/metrics", b"").status_code == 405
    assert measured.get("/metrics", accept="text/plain;version=nonsense").status_code == 200
