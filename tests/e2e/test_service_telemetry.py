"""What becomes of telemetry when nobody takes it, and what a router logs."""

import itertools
import os
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from opta_router.telemetry.export import BATCH_TRACES, MAX_QUEUED_TRACES
from opta_router.telemetry.quiet_logs import INTERVAL_S
from tests.e2e.processes import eventually
from tests.e2e.router_process import router
from tests.otlp import black_hole, collecting, refusing, slow

TEXT = "/v1/completions"
ECHO = "models: [{name: echo, target: 'scripted:', preload: true}]\n"
BODY = {"model": "echo", "prompt": "ab", "max_tokens": 2}
OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_METRIC_EXPORT_INTERVAL": "50"}
CANARY = "canary_in_the_prompt"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def dropped(running):
    return running.get("/admin/status").json()["telemetry"]["dropped"]


def scraped_dropped(running):
    families = text_string_to_metric_families(running.get("/metrics").text)
    samples = next(family.samples for family in families if family.name == "opta_telemetry_dropped")
    return {sample.labels["signal"]: sample.value for sample in samples}


@pytest.mark.parametrize("absent", [black_hole, slow, pytest.param(refusing, marks=pytest.mark.slow)])
def test_a_collector_that_does_not_take_it_changes_nothing_and_what_is_lost_is_counted(tmp_path, absent):
    with (
        absent() as endpoint,
        router(tmp_path, f"{ECHO}telemetry: {{otlp_endpoint: '{endpoint}'}}\n", OFTEN) as running,
    ):
        for _ in range(20):
            assert running.post(TEXT, BODY).status_code == 200
            assert running.get("/metrics").status_code == 200
        if absent is not slow:
            eventually(lambda: dropped(running)["traces"] > 0 and dropped(running)["metrics"] > 0)
            counted, scraped = dropped(running), scraped_dropped(running)
            assert all(counted[signal] <= scraped[signal] for signal in counted)
        assert running.end() == 0
        theirs = ("opentelemetry", "opta_router.telemetry", "requests", "urllib3")
        of_telemetry = [entry for entry in running.entries() if entry["logger"].startswith(theirs)]
    said_at = [datetime.fromisoformat(entry["time"]) for entry in of_telemetry]
    assert (said_at == []) == (absent is slow)
    for before, after in itertools.pairwise(said_at):
        assert after - before >= timedelta(seconds=INTERVAL_S - 1)


def test_a_swarm_before_a_collector_that_never_answers_waits_in_a_bounded_queue(tmp_path):
    config = f"{ECHO}telemetry: {{otlp_endpoint: '%s', max_traces_per_s: 10000}}\n"
    swarm = MAX_QUEUED_TRACES + 3 * BATCH_TRACES
    with black_hole() as endpoint, router(tmp_path, config % endpoint, OFTEN) as running:
        with running.sdk() as client:
            for _ in range(swarm):
                client.completions.create(**BODY)
        eventually(lambda: dropped(running)["traces"] >= BATCH_TRACES)
        assert running.end() == 0


def test_an_answer_that_goes_on_on_another_host_is_two_decodes_and_the_second_leads_to_the_first(tmp_path):
    with collecting() as collector:
        slowly = ECHO.replace("scripted:", "scripted:tokens_per_step=1,step_s=0.01")
        with router(tmp_path, f"{slowly}telemetry: {{otlp_endpoint: '{collector.endpoint}'}}\n") as running:
            with running.sdk(**{"X-Request-Id": "resumed"}) as client:
                stream = client.completions.create(**{**BODY, "prompt": "ab" * 100, "max_tokens": 100}, stream=True)
                for chunk in stream:
                    if chunk.choices and chunk.choices[0].text:
                        os.kill(running.host_pid(), signal.SIGKILL)
                        break
                assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices)
            assert running.end() == 0
        first, second = collector.named("opta.decode")
        (client_span,) = (span for span in collector.spans if span.kind == "CLIENT")
    assert (first.links, second.links) == ((), (first.span_id,))
    assert (first.status, first.attributes["error.type"], second.status) == ("ERROR", "engine_died", "UNSET")
    (event,) = second.events
    assert (event.name, event.attributes["opta.resumed"]) == ("opta.resumed", 1)
    assert client_span.attributes["opta.resumed"] == 1
    assert client_span.attributes["gen_ai.usage.output_tokens"] == 100


def test_what_is_logged_about_a_request_names_it_and_its_trace_and_the_access_log_is_its_line(tmp_path):
    with collecting() as collector:
        config = f"{ECHO}telemetry: {{otlp_endpoint: '{collector.endpoint}', access_log: true}}\n"
        with router(tmp_path, config) as running:
            body = {"model": "echo", "prompt": CANARY, "max_tokens": 64}
            traceparent = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
            assert (
                running.post(f"{TEXT}?key={CANARY}", body, x_request_id="r-1", traceparent=traceparent).status_code
                == 200
            )
            assert running.get("/healthz").status_code == 200
            assert running.end() == 0
        entries = [entry for entry in running.entries() if entry["logger"] == "opta_router.access"]
        (server,) = (span for span in collector.spans if span.kind == "SERVER")
    mine = next(entry for entry in entries if entry["request_id"] == "r-1")
    assert (mine["trace_id"], mine["span_id"]) == (TRACE_ID, server.span_id)
    assert (mine["method"], mine["path"], mine["status"], mine["lane"]) == ("POST", TEXT, 200, "interactive")
    assert mine["sent_bytes"] > 0
    assert next(entry for entry in entries if entry["path"] == "/healthz")["status"] == 200
    assert CANARY not in running.said()


def test_there_is_no_access_log_unless_it_is_asked_for_and_text_is_for_people(tmp_path):
    with router(tmp_path, ECHO, {}, arguments=("--log-format", "text")) as running:
        assert running.post(TEXT, BODY, x_request_id="r-1").status_code == 200
        assert running.end() == 0
    assert "r-1" not in running.log.read_text()
    assert " INFO opta_router.serving: stopping: " in running.log.read_text()


def test_a_disk_that_is_full_takes_no_log_and_stops_nothing(tmp_path):
    with router(tmp_path, ECHO, log=Path("/dev/full")) as running:
        assert running.post(TEXT, BODY).status_code == 200
        eventually(lambda: dropped(running)["logs"] > 0)
        assert scraped_dropped(running)["logs"] >= dropped(running)["logs"] > 0
        assert running.end() == 0
