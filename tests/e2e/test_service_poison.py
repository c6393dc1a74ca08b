"""What a client hears whose request kills engines, or whose engine does not come back; and what its neighbours hear."""

import json
import os
import signal
import threading

import httpx
import openai
import pytest

from tests.e2e.processes import eventually
from tests.e2e.router_process import ANSWER_DEADLINE_S, router

TEXT = "/v1/completions"
ECHO = """
server: {standby: false}
models:
  - {name: echo, target: "scripted:step_s=0.005", preload: true}
lanes:
  interactive: {max_active: 2}
"""
PLANTED = """
import os, sys, time
from lanes import restarts

restarts.BACKOFF_S = (0.0,)
if sys.orig_argv[1:3] == ["-m", "lanes.host"]:
    if os.path.exists({broken!r}):
        os._exit(7)
    from lanes.engines import scripted

    step = scripted.ScriptedEngine.step

    def step_or_die(self, limit_s=None):
        for spec in self._specs.values():
            poison = bytes(token - 1 for token in spec.prompt) == b"poison"
            if poison and self._emitted[spec.request_id] > len(spec.emitted):
                time.sleep(0.1)  # its first token reaches the router
                os.abort()
        return step(self, limit_s)

    scripted.ScriptedEngine.step = step_or_die
"""
"""A host that decodes for a certain prompt aborts; once a file is there, hosts end at their start."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts") / "broken"


@pytest.fixture(scope="module")
def running(tmp_path_factory, broken):
    planted = tmp_path_factory.mktemp("planted")
    (planted / "sitecustomize.py").write_text(PLANTED.format(broken=str(broken)))
    with router(tmp_path_factory.mktemp("router"), ECHO, {"PYTHONPATH": str(planted)}) as process:
        yield process


def body(prompt, tokens, **fields):
    return {"model": "echo", "prompt": prompt, "max_tokens": tokens, **fields}


def events_of(running, prompt, tokens, into, lane="throughput"):
    """The data of a stream, to its end."""
    with (
        httpx.Client(trust_env=False, timeout=ANSWER_DEADLINE_S) as http,
        http.stream(
            "POST", running.url + TEXT, json=body(prompt, tokens, stream=True), headers={"X-Opta-Lane": lane}
        ) as answer,
    ):
        assert answer.status_code == 200
        into.extend(line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))


@pytest.mark.parametrize("lane", [pytest.param("interactive", marks=pytest.mark.slow), "throughput"])
def test_poison_ends_in_the_stream_with_its_code_and_its_neighbours_in_both_lanes_get_all_of_their_text(running, lane):
    before = running.get("/admin/status").json()["engine"]["restarts"]
    neighbours = {"interactive": [], "throughput": []}
    threads = [
        threading.Thread(target=events_of, args=(running, "ab", 1500, events, beside))
        for beside, events in neighbours.items()
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: all(one["on_device"] == 1 for one in running.get("/admin/lanes").json().values()))
    said = []
    events_of(running, "poison", 100, said, lane)
    assert json.loads(said[0])["choices"][0]["text"] == "p"
    assert json.loads(said[-1])["error"]["code"] == "poison_request"
    for thread in threads:
        thread.join()
    for events in neighbours.values():
        *chunks, done = events
        text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks)
        assert (text, done) == ("ab" * 750, "[DONE]")
    engine = running.get("/admin/status").json()["engine"]
    assert engine["restarts"] - before == 2
    assert engine["quarantined"] == {}


def test_poison_that_is_not_streamed_is_an_error_that_no_client_tries_again(running):
    with running.sdk(**{"X-Opta-Lane": "throughput"}) as client, pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=5).completions.create(**body("poison", 100))
    assert caught.value.code == "poison_request"
    assert running.post(TEXT, body("ab", 4)).status_code == 200


def test_when_engines_do_not_come_up_any_more_whoever_waits_and_whoever_comes_hears_of_it(running, broken):
    said = []
    waiting = threading.Thread(target=events_of, args=(running, "ab", 100_000, said))
    waiting.start()
    eventually(lambda: running.get("/admin/lanes").json()["throughput"]["on_device"] == 1)
    broken.touch()
    os.kill(running.host_pid(), signal.SIGKILL)
    waiting.join()
    error = json.loads(said[-1])["error"]
    assert (error["code"], "the host ended with status 7" in error["message"]) == ("engine_died", True)
    refused = running.post(TEXT, body("ab", 4))
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert running.get("/healthz").status_code == 200
    broken.unlink()
    eventually(lambda: running.post(TEXT, body("ab", 4)).status_code == 200)
