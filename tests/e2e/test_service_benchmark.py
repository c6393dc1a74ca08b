"""`POST /admin/benchmark`: a small benchmark in the running service."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.e2e.processes import eventually

PATH = "/admin/benchmark"
SMALL = {"classes": ["code", "chat"], "max_tokens": 16}


def test_both_ways_are_measured_and_the_speculative_section_is_the_engines_own(pair):
    before = counts(pair)
    answer = pair.post(PATH, SMALL)
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert (report["model"], report["lane"], report["complete"]) == ("opta-tiny", "interactive", True)
    assert [found["place"]["prompts"] for found in report["classes"]] == SMALL["classes"]
    spec = report["speculative"]
    assert (spec["active"], spec["telemetry"], spec["reasons"]) == (True, "native", {"approved": 2})
    assert spec["proposed"] == spec["accepted"] + spec["rejected"] + spec["ignored"] > 0
    assert spec["acceptance_ratio"] == pytest.approx(spec["accepted"] / (spec["accepted"] + spec["rejected"]), abs=1e-4)
    assert [report[way]["answers"] for way in ("on", "off")] == [2, 2]
    assert report["speedup"] > 0
    assert {name: value - before[name] for name, value in counts(pair).items()} == {
        name: spec[name] for name in ("rounds", "proposed", "accepted", "rejected", "ignored")
    }


def test_what_never_speculates_says_so(pair):
    spec = pair.post(PATH, {**SMALL, "lane": "throughput", "classes": ["json"]}).json()["speculative"]
    assert (spec["active"], spec["reasons"], spec["acceptance_ratio"]) == (False, {"lane": 1}, None)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompts": 9}, 400, "prompts"),
        ({"max_tokens": 100_000}, 400, "max_tokens"),
        ({"classes": []}, 400, "classes"),
        ({"promts": 1}, 400, "promts"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_name(pair, body, status, param):
    answer = pair.post(PATH, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_second_one_is_a_conflict_and_who_leaves_ends_the_first(pair):
    long = json.dumps({"max_tokens": 512, "rounds": 5, "prompts": 8}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", urlsplit(pair.url).port)) as first:
        first.sendall(f"{head}content-length: {len(long)}\r\n\r\n".encode() + long)
        eventually(lambda: in_lane(pair) == (1, 0))
        second = pair.post(PATH, SMALL)
        assert (second.status_code, second.json()["error"]["code"]) == (409, "benchmark_running")
    eventually(lambda: in_lane(pair) == (0, 0))
    assert pair.post(PATH, {**SMALL, "classes": ["json"]}).status_code == 200


def counts(running):
    found = running.get("/admin/models").json()["models"][0]["speculation"]["counts"]
    return {name: found[name] for name in ("rounds", "proposed", "accepted", "rejected", "ignored")}


def in_lane(running):
    lane = running.get("/admin/lanes").json()["interactive"]
    return lane["active"], lane["queued"]
