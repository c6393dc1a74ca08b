"""The server in a process of its own: its signals, and the end of its descriptors."""

import asyncio
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress

import pytest

from opta_router.server import ServerLimits, serve, stop_signals

FEW_DESCRIPTORS = 256


async def app(scope, receive, send):
    """Sends one byte, then a second one when the client's has come."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"1", "more_body": True})
    await receive()
    await send({"type": "http.response.body", "body": b"2"})


async def main() -> None:
    with stop_signals() as stop:
        await serve(
            app,
            host="127.0.0.1",
            port=0,
            shutdown_trigger=stop.drain.wait,
            cut_trigger=stop.cut.wait,
            limits=ServerLimits(drain_timeout_s=3600),
            on_bound=lambda url: print(url, flush=True),
        )


@contextmanager
def running(descriptors=1024):
    """The process, and the address that it listens on."""
    command = [sys.executable, __file__, str(descriptors)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            host, port = process.stdout.readline().strip().removeprefix("http://").split(":")
            yield process, (host, int(port))
        finally:
            process.kill()


@contextmanager
def request(address):
    """A client, and the status of its answer; with a 200 it has the first byte, and may ask for the second."""
    with socket.create_connection(address, timeout=20) as client:
        client.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\n")
        received = client.recv(1000)
        status = int(received.split()[1])
        while status == 200 and not received.endswith(b"\r\n\r\n1"):
            received += client.recv(1000)
        yield client, status


def is_refused(address):
    try:
        with socket.create_connection(address, timeout=20):
            return False
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_lets_running_requests_end(number):
    with running() as (process, address), request(address) as (client, _):
        process.send_signal(number)
        while not is_refused(address):
            pass
        client.sendall(b"x")
        assert client.recv(1000) == b"2"
        client.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


def test_second_signal_cuts_running_requests():
    with running() as (process, address), request(address) as (client, _):
        process.send_signal(signal.SIGTERM)
        while not is_refused(address):
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        with suppress(ConnectionResetError):
            assert client.recv(1000) == b""


def test_more_clients_than_descriptors_are_told_so_and_the_next_is_served_once_they_leave():
    with running(FEW_DESCRIPTORS) as (process, address):
        with ExitStack() as clients:
            served, _ = clients.enter_context(request(address))
            for _ in range(FEW_DESCRIPTORS):
                last = clients.enter_context(socket.create_connection(address, timeout=20))
            assert last.recv(1000).startswith(b"HTTP/1.1 503 ")
            served.sendall(b"x")
            assert served.recv(1000) == b"2"
        status = 503
        while status == 503:
            with suppress(ConnectionResetError), request(address) as (_, status):
                pass
        assert status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        # asyncio tells of one shortage as often as the backlog is long (CPython gh-151615): 25 kB each, once a second.
        assert len(process.stderr.read()) < 100_000


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
    asyncio.run(main())
