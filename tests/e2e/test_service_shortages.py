"""What the system runs out of: room for the log, threads, patience with clients that all leave at once."""

import os
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.e2e.processes import descriptors, eventually
from tests.e2e.router_process import EXIT_DEADLINE_S, RouterProcess, router

TEXT = "/v1/completions"
ECHO = """
models:
  - {name: echo, target: "scripted:step_s=0.002", preload: true}
server: {standby: false}
lanes:
  throughput: {max_active: 8, max_queue: 4000}
"""
SHORT = {"model": "echo", "prompt": "ab", "max_tokens": 4}


def test_a_disk_that_is_full_takes_no_log_and_everything_else_goes_on(tmp_path):
    file = tmp_path / "opta.yaml"
    file.write_text(ECHO)
    command = [sys.executable, "-m", "opta_router", "serve", "--port", "0", "--config", str(file)]
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=full, text=True) as process,
    ):
        try:
            url = process.stdout.readline().split(" answers at ")[1].split()[0]
            running = RouterProcess(process, url, file)
            for _ in range(50):
                assert running.post(TEXT, SHORT).json()["choices"][0]["text"] == "abab"
                assert running.post("/admin/reload", b"").status_code == 200  # each is a line of the audit log
            os.kill(running.host_pid(), 9)
            eventually(lambda: running.post(TEXT, SHORT).status_code == 200)
            process.terminate()
            assert process.wait(EXIT_DEADLINE_S) == 0
        finally:
            process.kill()


WITHOUT_THREADS = """
import sys, threading
from pathlib import Path

start = threading.Thread.start

def start_if_there_are(thread):
    if Path({exhausted!r}).exists():
        raise RuntimeError("can't start new thread")
    start(thread)

if sys.orig_argv[1:3] == ["-m", "lanes.host"]:
    threading.Thread.start = start_if_there_are
"""
"""What Python says when the system gives a host no more threads; root has no bound that could be reached."""


def test_a_host_that_gets_no_more_threads_fails_what_needs_one_and_serves_the_rest(tmp_path):
    planted, exhausted = tmp_path / "planted", tmp_path / "exhausted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(WITHOUT_THREADS.format(exhausted=str(exhausted)))
    long = {**SHORT, "prompt": "x" * 900_000}  # takes a thread while it is encoded
    with router(tmp_path, ECHO, {"PYTHONPATH": str(planted)}) as running:
        exhausted.touch()
        with ThreadPoolExecutor(8) as clients:
            # One of them has the thread that looked at the model's files.
            answers = list(clients.map(lambda _: running.post(TEXT, long, x_opta_lane="throughput"), range(8)))
        failed = [answer.json()["error"]["code"] for answer in answers if answer.status_code == 500]
        assert 0 < len(failed) < 8
        assert set(failed) == {"engine_error"}
        assert running.post(TEXT, SHORT).status_code == 200
        exhausted.unlink()
        assert running.post(TEXT, long).status_code == 200
        assert running.get("/admin/status").json()["engine"]["restarts"] == 0


def test_two_thousand_clients_that_are_reset_leave_nothing_behind(tmp_path):
    body = httpx.Request("POST", "http://localhost", json={**SHORT, "max_tokens": 100_000}).content
    head = f"POST {TEXT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-opta-lane: throughput\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    with router(tmp_path, ECHO) as running:
        assert running.post(TEXT, SHORT).status_code == 200
        address = running.url.removeprefix("http://").split(":")
        before = descriptors(running.process.pid)
        for _ in range(10):
            storm = [socket.create_connection((address[0], int(address[1]))) for _ in range(200)]
            for client in storm:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(request)
            eventually(lambda: running.get("/admin/lanes").json()["throughput"]["active"] == 8)
            for client in storm:
                client.close()
        eventually(lambda: lanes_are_empty(running) and descriptors(running.process.pid) <= before)
        assert running.post(TEXT, SHORT, x_opta_lane="throughput").status_code == 200


def lanes_are_empty(running):
    lanes = running.get("/admin/lanes").json().values()
    return all(lane["active"] == lane["queued"] == lane["on_device"] == 0 for lane in lanes)
