"""A router whose configuration changes while it serves, and who may change it."""

import hashlib
import json
import os
import signal
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from tests.e2e.router_process import ANSWER_DEADLINE_S, router

TEXT = "/v1/completions"
ECHO = """
models:
  - {name: echo, target: "scripted:tokens_per_step=1,step_s=0.005", preload: true}
lanes:
  interactive: {weight: 8, max_active: 1, max_queue: 4, queue_timeout: 60s}
  throughput: {weight: 1, max_active: 2}
"""
OTHER = ECHO.replace("weight: 8, max_active: 1", "weight: 4, max_active: 2")
BAD = ECHO.replace("weight: 8", "weight: heavy")
SHORT = {"model": "echo", "prompt": "ab", "max_tokens": 4}
SEEN_S = 30.0


@pytest.fixture
def echo(tmp_path):
    with router(tmp_path, ECHO) as running:
        yield running


def write(running, text):
    """Put another text in the place of the configuration's file, as editors do."""
    new = running.log.with_name("new.yaml")
    new.write_text(text, encoding="utf-8")
    new.replace(running.log.with_name("opta.yaml"))


def eventually(condition):
    """Wait for what another process does in its own time."""
    deadline_s = time.monotonic() + SEEN_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.02)


def patch(running, lane, body, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.patch(
        f"{running.url}/admin/lanes/{lane}", json=body, headers=names, timeout=ANSWER_DEADLINE_S, trust_env=False
    )


def lane(running, name="interactive"):
    return running.get("/admin/lanes").json()[name]


def route(running):
    """The rule that places a request which leaves the choice to the router."""
    answer = running.post(TEXT, SHORT)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-opta-route"]


@contextmanager
def streaming(running, name, max_tokens):
    """The data of a stream's events; the first one has arrived."""
    body = {**SHORT, "max_tokens": max_tokens, "stream": True}
    with (
        httpx.Client(trust_env=False, timeout=ANSWER_DEADLINE_S) as http,
        http.stream("POST", running.url + TEXT, json=body, headers={"X-Opta-Lane": name}) as response,
    ):
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        first = next(events)
        yield (event for part in ([first], events) for event in part)


def check_whole(events, tokens):
    """The stream holds every token, and its end is the usual one."""
    *chunks, done = events
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert done == "[DONE]"
    assert "".join(choice["text"] for choice in choices) == "ab" * (tokens // 2)
    assert choices[-1]["finish_reason"] == "length"


# while requests run


def test_slots_and_weights_change_under_a_stream_that_does_not_notice(echo):
    with streaming(echo, "interactive", 1200) as events:
        assert route(echo) == "auto:busy"
        changed = patch(echo, "interactive", {"max_active": 2, "weight": 2.5})
        assert (changed.status_code, changed.json()["max_active"], changed.json()["weight"]) == (200, 2, 2.5)
        assert route(echo) == "auto:room"
        assert patch(echo, "interactive", {"max_active": 1}).json()["active"] == 1
        assert route(echo) == "auto:busy"
        write(echo, OTHER)
        assert echo.post("/admin/reload", b"").status_code == 200
        assert route(echo) == "auto:room"
        check_whole(events, 1200)


def test_whoever_waits_is_started_by_a_slot_that_was_not_there_when_it_came(echo):
    waited = []
    with streaming(echo, "interactive", 1_000_000):
        thread = threading.Thread(target=lambda: waited.append(echo.post(TEXT, SHORT, x_opta_lane="interactive")))
        thread.start()
        eventually(lambda: lane(echo)["queued"] == 1)
        assert patch(echo, "interactive", {"max_active": 2}).json()["queued"] == 0
        thread.join()
    assert waited[0].json()["choices"][0]["text"] == "abab"


def device_s(running, name):
    return lane(running, name)["device_s"] or 0.0


def test_the_devices_time_follows_the_weights_while_both_lanes_have_work(echo):
    with streaming(echo, "interactive", 1_000_000), streaming(echo, "throughput", 1_000_000):
        eventually(lambda: device_s(echo, "interactive") > 4 * device_s(echo, "throughput") > 0)
        patch(echo, "throughput", {"weight": 1000})
        eventually(lambda: device_s(echo, "throughput") > device_s(echo, "interactive"))


def test_the_host_that_follows_a_dead_one_has_the_weights_in_force(echo):
    patch(echo, "throughput", {"weight": 1000})
    os.kill(echo.host_pid(), signal.SIGKILL)
    eventually(lambda: "host lost" in echo.said())
    eventually(lambda: echo.get("/readyz").status_code == 200)
    with streaming(echo, "interactive", 1_000_000), streaming(echo, "throughput", 1_000_000):
        eventually(lambda: device_s(echo, "throughput") > device_s(echo, "interactive") > 0)


def test_a_file_that_flips_between_good_and_bad_fails_no_request(echo):
    statuses = []
    with streaming(echo, "throughput", 1200) as events:
        for text in [BAD, OTHER, "", ECHO, "lanes: [", OTHER, "models: []", ECHO]:
            write(echo, text)
            statuses.append(echo.post("/admin/reload", b"").status_code)
            assert echo.post(TEXT, SHORT).json()["choices"][0]["text"] == "abab"
        check_whole(events, 1200)
    assert statuses == [422, 200, 422, 200, 422, 200, 422, 200]


# what makes it reload


def test_a_change_of_the_file_is_noticed(echo):
    write(echo, OTHER)
    eventually(lambda: lane(echo)["weight"] == 4)
    assert lane(echo)["max_active"] == 2
    assert "reloaded: lanes.interactive.weight, lanes.interactive.max_active" in echo.said()


def test_sighup_reads_the_file_again_and_ends_what_was_set_by_hand(echo):
    assert patch(echo, "interactive", {"weight": 3, "queue_timeout": "1m"}).json()["queue_timeout"] == 60
    assert lane(echo)["weight"] == 3
    echo.process.send_signal(signal.SIGHUP)
    eventually(lambda: lane(echo)["weight"] == 8)
    assert route(echo) == "auto:room"


def test_a_reload_says_what_changed_and_what_waits_for_a_restart(echo):
    write(echo, OTHER.replace("max_active: 2}", "max_active: 9}") + "server: {drain_timeout: 7s}\n")
    answer = echo.post("/admin/reload", b"").json()
    assert answer == {
        "changed": ["lanes.interactive.weight", "lanes.interactive.max_active"],
        "needs_restart": ["server.drain_timeout", "lanes.throughput.max_active"],
    }
    assert lane(echo, "throughput")["max_active"] == 2


def test_without_a_file_reload_says_so_and_sighup_does_no_harm(pair):
    answer = pair.post("/admin/reload", b"")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_config_file")
    pair.process.send_signal(signal.SIGHUP)
    eventually(lambda: "SIGHUP: the router was started without --config" in pair.said())
    status = pair.get("/admin/status").json()
    assert (status["config"]["file"], status["config"]["last_error"]) == (None, None)
    assert list(status["lanes"]) == ["interactive", "throughput"]


# bad files


def test_a_bad_file_is_reported_once_and_the_old_configuration_stays(echo):
    def last_error():
        return echo.get("/admin/status").json()["config"]["last_error"]

    loaded_at = echo.get("/admin/status").json()["config"]["loaded_at"]
    write(echo, BAD)
    eventually(last_error)
    found = last_error()
    assert (found["line"], found["key_path"], found["found"]) == (5, "lanes.interactive.weight", "'heavy'")
    assert "a number" in found["allowed"]
    status = echo.get("/admin/status").json()
    assert (status["lanes"]["interactive"]["weight"], status["config"]["loaded_at"]) == (8, loaded_at)
    assert route(echo) == "auto:room"
    write(echo, OTHER)
    eventually(lambda: last_error() is None)
    assert lane(echo)["weight"] == 4
    assert echo.said().count("not reloaded") == 1


def test_a_bad_file_is_an_answer_with_file_line_key_path_found_and_allowed(echo):
    write(echo, BAD)
    answer = echo.post("/admin/reload", b"")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (422, "invalid_config", "invalid_request_error")
    assert error["file"].endswith("/opta.yaml")
    assert (error["line"], error["key_path"], error["found"]) == (5, "lanes.interactive.weight", "'heavy'")
    assert error["message"].startswith(f"{error['file']}:5: lanes.interactive.weight: ")


# one lane, by hand


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A router whose configuration no test changes."""
    with router(tmp_path_factory.mktemp("steady"), ECHO) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "body", "status", "code", "param"),
    [
        ("interactive", {"wieght": 1}, 400, "invalid_config", "lanes.interactive.wieght"),
        ("interactive", {"weight": 2, "max_queue": -1}, 400, "invalid_config", "lanes.interactive.max_queue"),
        ("throughput", {"queue_timeout": "soon"}, 400, "invalid_config", "lanes.throughput.queue_timeout"),
        ("throughput", {"max_active": 3}, 409, "restart_required", "lanes.throughput.max_active"),
        ("interactive", [1], 400, "invalid_type", None),
        ("turbo", {}, 404, "lane_not_found", None),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_changes_nothing(steady, name, body, status, code, param):
    answer = patch(steady, name, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert (lane(steady)["weight"], lane(steady, "throughput")["max_active"]) == (8, 2)


def test_who_was_refused_a_setting_is_in_the_audit_log(echo):
    patch(echo, "interactive", {"weight": "heavy"})
    patch(echo, "throughput", {"max_active": 3})
    patch(echo, "interactive", [1])
    patch(echo, "turbo", {"weight": 1})
    write(echo, BAD)
    echo.post("/admin/reload", b"")
    who = "by whoever is on this machine, from 127.0.0.1: refused"
    eventually(lambda: f"reload {who}" in echo.said())  # another thread writes it, and this line is the last
    log = echo.said()
    for refused in (
        f"lane interactive {who}: invalid_config",
        f"lane throughput {who}: restart_required",
        f"PATCH /admin/lanes/{{lane}} {who}: invalid_type",
        f"PATCH /admin/lanes/{{lane}} {who}: lane_not_found",
        f"reload {who}: invalid_config",
    ):
        assert log.count(refused) == 1, refused


def test_a_page_of_another_site_cannot_administer(steady):
    answer = steady.post("/admin/reload", b"", origin="https://elsewhere.example")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    plain = httpx.patch(f"{steady.url}/admin/lanes/interactive", content=b"{}", trust_env=False)
    assert (plain.status_code, plain.json()["error"]["code"]) == (415, "unsupported_media_type")


# who may


ADMIN_KEY, CLIENT_KEY = "opta-admin-0123456789abcdef", "opta-client-0123456789abcdef"
KEYED = f"""
server: {{admin_key_sha256: "{hashlib.sha256(ADMIN_KEY.encode()).hexdigest()}"}}
clients: [{{name: ann, key_sha256: "{hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}"}}]
{ECHO}"""


def test_only_the_admin_key_administers_and_who_did_what_is_logged_without_keys(tmp_path):
    def all_of_it(**headers):
        return [
            running.get("/admin/status", **headers),
            running.get("/admin/lanes", **headers),
            patch(running, "interactive", {"weight": 5}, **headers),
            running.post("/admin/reload", b"", **headers),
        ]

    with router(tmp_path, KEYED) as running:
        for headers in ({}, {"authorization": f"Bearer {CLIENT_KEY}"}, {"authorization": "Bearer opta-mistyped"}):
            for answer in all_of_it(**headers):
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        for headers in ({"authorization": f"Bearer {ADMIN_KEY}"}, {"x-api-key": ADMIN_KEY}):
            answers = all_of_it(**headers)
            assert [answer.status_code for answer in answers] == [200, 200, 200, 200]
            assert answers[3].json()["changed"] == ["lanes.interactive.weight"]
        as_client = running.post(TEXT, SHORT, authorization=f"Bearer {ADMIN_KEY}")
        assert as_client.status_code == 401, "the admin is no client"
        log = running.said()
    assert log.count('lane interactive: {"weight":5} by the admin key, from 127.0.0.1: lanes.interactive.weight') == 2
    assert log.count("reload by the admin key, from 127.0.0.1: lanes.interactive.weight") == 2
    assert "PATCH /admin/lanes/{lane} from 127.0.0.1: refused: invalid_api_key" in log
    assert all(key not in log for key in (ADMIN_KEY, CLIENT_KEY, "opta-mistyped"))


def test_a_router_that_others_reach_is_administered_by_nobody_without_a_key(tmp_path):
    with router(tmp_path, "server: {host: 0.0.0.0}\n" + ECHO) as running:
        for answer in (running.get("/admin/lanes"), patch(running, "interactive", {"weight": 5})):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_key_not_configured")
        assert running.post(TEXT, SHORT).status_code == 200
