"""Clients that stop reading in the middle of a stream: what they cost, whom they hold up, and how they end."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import h2.config
import h2.connection
import pytest

from tests.e2e.processes import eventually, resident_bytes
from tests.e2e.router_process import router

ECHO = """
models:
  - {name: echo, target: "scripted:tokens_per_step=2,step_s=0.002", preload: true}
lanes:
  throughput: {max_active: 64}
"""
FOR_EVER = json.dumps({"model": "echo", "prompt": "x" * 50, "max_tokens": 1_000_000, "stream": True}).encode()
HEADERS = [("host", "localhost"), ("content-type", "application/json"), ("x-opta-lane", "throughput")]
STALLED = 20


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    with router(tmp_path_factory.mktemp("echo"), ECHO) as running:
        yield running


def connection(running):
    host, port = running.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect((host, int(port)))
    return client


def stall_over_http1(running):
    """Twenty connections whose client reads the first bytes and no more."""
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS)
    request = f"POST /v1/completions HTTP/1.1\r\n{head}content-length: {len(FOR_EVER)}\r\n\r\n".encode() + FOR_EVER
    clients = [connection(running) for _ in range(STALLED)]
    for client in clients:
        client.sendall(request)
    for client in clients:
        assert client.recv(12) == b"HTTP/1.1 200"
    return clients


def stall_over_http2(running):
    """Twenty streams on a connection that is read, and whose windows are never opened again."""
    client = connection(running)
    protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    protocol.initiate_connection()
    pseudo = [(":method", "POST"), (":path", "/v1/completions"), (":scheme", "http"), (":authority", "localhost")]
    for _ in range(STALLED):
        stream_id = protocol.get_next_available_stream_id()
        protocol.send_headers(stream_id, [*pseudo, *HEADERS[1:]])
        protocol.send_data(stream_id, FOR_EVER, end_stream=True)
    client.sendall(protocol.data_to_send())

    def read():
        while data := client.recv(65536):
            protocol.receive_data(data)

    thread = threading.Thread(target=read)
    thread.start()
    return [Http2Client(client, thread)]


class Http2Client:
    """A socket that another thread reads."""

    def __init__(self, client, thread):
        self._client, self._thread = client, thread

    def close(self):
        self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._client.close()


# Kept one by one, the events that nobody reads were 25 MB over HTTP/1.1 and 6 MB over HTTP/2; they are 4.7 and 0.7.
@pytest.mark.parametrize(("stall", "most_mib"), [(stall_over_http1, 5), (stall_over_http2, 3)])
def test_stalled_readers_cost_little_hold_up_nobody_and_are_cut_with_their_slots_freed(echo, stall, most_mib):
    def active():
        return echo.get("/admin/lanes").json()["throughput"]["active"]

    def ask(_=None):
        body = {"model": "echo", "prompt": "ab", "max_tokens": 640}
        answer = echo.post("/v1/completions", body, x_opta_lane="throughput")
        assert answer.json()["choices"][0]["text"] == "ab" * 320

    with ThreadPoolExecutor(STALLED) as crowd:  # what any crowd leaves in memory is none of the stalled ones'
        list(crowd.map(ask, range(STALLED)))
    eventually(lambda: active() == 0)
    before_bytes = resident_bytes(echo.process.pid)
    most_bytes = answered = 0
    clients = stall(echo)
    try:
        eventually(lambda: active() == STALLED)
        while active() >= STALLED:  # the server's write deadline has not passed
            ask()
            answered += 1
            most_bytes = max(most_bytes, resident_bytes(echo.process.pid))
        eventually(lambda: active() == 0)
        eventually(lambda: echo.get("/admin/lanes").json()["throughput"]["on_device"] == 0)
    finally:
        for client in clients:
            with closing(client):
                pass
    assert answered > 5
    assert most_bytes - before_bytes < most_mib * 2**20
