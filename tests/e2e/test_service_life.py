"""A router's start, its engine's death, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.e2e.router_process import ANSWER_DEADLINE_S, RouterProcess, router

TEXT = "/v1/completions"
ECHO = """
server: {drain_timeout: 20s}
models:
  - {name: echo, target: "scripted:tokens_per_step=1,step_s=0.005", preload: true}
lanes:
  interactive: {max_active: 1, max_queue: 4}
"""
SHORT = {"model": "echo", "prompt": "ab", "max_tokens": 4}
RECOVERY_S = 30.0


@contextmanager
def streaming(running, max_tokens, lane="interactive"):
    """The data of a stream's events; the first one has arrived."""
    body = {"model": "echo", "prompt": "ab", "max_tokens": max_tokens, "stream": True}
    with (
        httpx.Client(trust_env=False, timeout=ANSWER_DEADLINE_S) as http,
        http.stream("POST", running.url + TEXT, json=body, headers={"X-Opta-Lane": lane}) as response,
    ):
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        first = next(events)
        yield (event for part in ([first], events) for event in part)


def eventually(condition):
    """Wait for what another process does in its own time."""
    deadline_s = time.monotonic() + RECOVERY_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.02)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def serve(*arguments):
    """A start that must fail: exit status and what was complained about."""
    command = [sys.executable, "-m", "opta_router", "serve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


# start


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lanes:\n  interactive: {weight: heavy}\n", ":2: lanes.interactive.weight: "),
        ("lane: {}\n", ":1: lane: "),
        ("models: [\n", "opta.yaml:"),
    ],
)
def test_a_bad_configuration_is_a_2_and_one_line_that_names_the_place(tmp_path, text, said):
    file = tmp_path / "opta.yaml"
    file.write_text(text)
    status, complaint = serve("--config", file)
    assert (status, complaint.count("\n")) == (2, 1)
    assert complaint.startswith(f"opta-router: {file}:")
    assert said in complaint


def test_a_port_that_is_taken_is_a_1_and_one_line(tmp_path):
    file = tmp_path / "opta.yaml"
    file.write_text(ECHO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, complaint = serve("--config", file, "--port", port)
    assert status == 1
    assert f"127.0.0.1:{port}" in complaint.splitlines()[-1]
    assert "Traceback" not in complaint


def test_a_model_that_cannot_be_loaded_is_said_by_readyz_and_by_every_answer(tmp_path):
    with router(tmp_path, "models: [{name: gone, target: /no/such/directory, preload: true}]") as running:
        assert running.get("/healthz").status_code == 200
        ready = running.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert "/no/such/directory" in ready.json()["reasons"][0]
        answer = running.post(TEXT, {**SHORT, "model": "gone"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert running.end() == 0


def test_while_the_engine_starts_requests_are_told_to_come_back_and_sigterm_ends_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "opta_router", "serve", "--port", str(port)]
    log = tmp_path / "router.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            running = RouterProcess(process, f"http://127.0.0.1:{port}", log)
            eventually(lambda: answers(running))
            ready = running.get("/readyz")
            assert (ready.status_code, ready.json()["reasons"][0]) == (503, "engine is starting")
            answer = running.post(TEXT, {**SHORT, "model": "auto"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert running.end() == 0
            assert process.stdout.read() == "", "it never was ready"
        finally:
            process.kill()


def answers(running):
    try:
        return running.get("/healthz").status_code == 200
    except httpx.ConnectError:
        return False


# the engine's death


def test_a_killed_engine_is_a_pause_in_the_stream_and_the_answer_says_so(tmp_path):
    with router(tmp_path, ECHO) as running:
        first_pid = running.host_pid()
        with streaming(running, 500) as events:
            os.kill(first_pid, signal.SIGKILL)
            *chunks, finishing, done = events
        text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in [*chunks, finishing])
        assert (text, done) == ("ab" * 250, "[DONE]")
        assert json.loads(finishing)["opta"]["resumed"] == 1
        assert running.host_pid() != first_pid
        engine = running.get("/admin/status").json()["engine"]
        assert (engine["state"], engine["restarts"], engine["resumed"]) == ("ready", 1, 1)
        assert engine["last_failure"] == "the host was ended by SIGKILL"


def test_a_killed_engine_is_a_delay_for_whoever_had_no_byte_yet_and_for_who_waits(tmp_path):
    with router(tmp_path, ECHO) as running:
        answers = []

        def ask():
            with running.sdk(**{"X-Opta-Lane": "interactive"}) as client:
                answers.append(client.completions.create(model="echo", prompt="ab", max_tokens=300).choices[0].text)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: running.post(TEXT, SHORT, x_opta_lane="auto").headers["x-opta-route"] == "auto:busy")
        os.kill(running.host_pid(), signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert answers == ["ab" * 150] * 3


def test_an_engine_that_hangs_is_replaced_while_the_stream_is_kept_alive(tmp_path):
    with (
        router(tmp_path, ECHO) as running,
        httpx.Client(trust_env=False, timeout=ANSWER_DEADLINE_S) as http,
        http.stream("POST", running.url + TEXT, json={**SHORT, "max_tokens": 700, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        before = [next(lines) for _ in range(600)]  # the watchdog knows by then how long a step takes
        stopped_pid = running.host_pid()
        os.kill(stopped_pid, signal.SIGSTOP)
        after = list(lines)
        assert ": keep-alive" in after
        assert ": keep-alive" not in before
        data = [line.removeprefix("data: ") for line in [*before, *after] if line.startswith("data: ")]
        assert data.pop() == "[DONE]"
        chunks = [json.loads(event) for event in data]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "ab" * 350
        assert chunks[-1]["opta"]["resumed"] == 1
        eventually(lambda: gone(stopped_pid))
        engine = running.get("/admin/status").json()["engine"]
        assert engine["last_failure"].startswith("the host hung and was killed: a decode step of echo")


# the end


def test_sigterm_lets_a_stream_end_and_turns_away_who_waits(tmp_path):
    with router(tmp_path, ECHO) as running:
        host_pid = running.host_pid()
        waiting = []
        with streaming(running, 300) as events:
            thread = threading.Thread(
                target=lambda: waiting.append(running.post(TEXT, SHORT, x_opta_lane="interactive"))
            )
            thread.start()
            eventually(lambda: running.post(TEXT, SHORT).headers["x-opta-route"] == "auto:busy")
            running.process.send_signal(signal.SIGTERM)
            thread.join()
            *_, finishing, done = events
        assert (json.loads(finishing)["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        assert (waiting[0].status_code, waiting[0].json()["error"]["code"]) == (503, "draining")
        assert running.process.wait(20) == 0
        eventually(lambda: gone(host_pid))
        with pytest.raises(httpx.ConnectError):
            running.get("/healthz")


def test_sigterm_lets_eight_streams_end_though_their_engine_dies_meanwhile(tmp_path):
    with router(tmp_path, ECHO) as running, ExitStack() as streams:
        events = [streams.enter_context(streaming(running, 400, lane="throughput")) for _ in range(8)]
        running.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping" in running.said())
        os.kill(running.host_pid(), signal.SIGKILL)
        for each in events:
            *chunks, finishing, done = each
            text = "".join(json.loads(chunk)["choices"][0]["text"] for chunk in [*chunks, finishing])
            assert (text, done) == ("ab" * 200, "[DONE]")
        assert running.process.wait(20) == 0


def test_sigterm_with_an_engine_that_hangs_ends_when_its_time_is_up(tmp_path):
    with router(tmp_path, ECHO.replace("20s", "1s")) as running:
        host_pid = running.host_pid()
        with streaming(running, 1_000_000) as events:
            os.kill(host_pid, signal.SIGSTOP)
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(events)
        assert running.process.wait(20) == 0
        assert gone(host_pid)


def test_an_operator_drains_the_router_and_undoes_it(tmp_path):
    with router(tmp_path, ECHO) as running:
        drain = f"{running.url}/admin/drain"
        with streaming(running, 300) as events:
            assert httpx.post(drain, trust_env=False).json()["draining"] is True
            refused = running.post(TEXT, SHORT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert running.get("/readyz").json()["reasons"] == ["draining"]
            *_, done = events
            assert done == "[DONE]"
        assert httpx.delete(drain, trust_env=False).json()["draining"] is False
        assert running.post(TEXT, SHORT).status_code == 200
        assert running.get("/readyz").status_code == 200
        log = running.said()
        assert "drain by whoever is on this machine, from 127.0.0.1" in log
        assert "no longer drained, by whoever is on this machine, from 127.0.0.1" in log


def test_a_killed_router_takes_its_engine_along(tmp_path):
    with router(tmp_path, ECHO, {"TMPDIR": str(tmp_path)}) as running:
        host_pid = running.host_pid()
        with streaming(running, 1_000_000):
            running.process.kill()
            eventually(lambda: gone(host_pid))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["opta.yaml", "router.log"]


def test_a_second_sigterm_cuts_what_still_runs(tmp_path):
    with router(tmp_path, ECHO.replace("20s", "1h")) as running:
        with streaming(running, 1_000_000) as events:
            running.process.send_signal(signal.SIGTERM)
            eventually(lambda: "stopping" in running.said())
            running.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(events)
        assert running.process.wait(20) == 0


def test_an_idle_router_ends_at_once_and_leaves_nothing_in_the_log(tmp_path):
    with router(tmp_path, ECHO) as running:
        host_pid = running.host_pid()
        assert running.post(TEXT, SHORT).status_code == 200
        assert running.end() == 0
        eventually(lambda: gone(host_pid))
        log = running.said()
    assert "ERROR" not in log
    assert "WARNING" not in log
    assert "Traceback" not in log
