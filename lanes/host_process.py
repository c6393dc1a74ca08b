"""A host as a process: its spawning, its handshake, what it prints, and its end."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import anyio
from anyio.abc import ByteReceiveStream, Process, SocketAttribute, SocketListener, SocketStream
from anyio.streams.text import TextReceiveStream

from lanes import wire
from lanes.blas import preload_environment
from lanes.environment import HEARTBEAT_FD_VARIABLE, TOKEN_VARIABLE
from lanes.errors import HostDied, HostFailedToStart
from lanes.framing import FrameReader
from lanes.heartbeat import HeartbeatPage, shared_page

host_log = logging.getLogger("lanes.host.output")

HELLO_DEADLINE_S: Final = 30.0
TERMINATE_DEADLINE_S: Final = 1.0
"""A host has no handler for SIGTERM: the system ends it, busy or not, unless it is stopped."""

OUTPUT_DEADLINE_S: Final = 1.0
EXIT_DEADLINE_S: Final = 3.0
"""How long a host whose link is gone may take to end by itself."""


class Host(NamedTuple):
    """A process that has said hello: its link, what it said, and the page with its device loop's beats."""

    process: Process
    stream: SocketStream
    said: wire.Hello
    page: HeartbeatPage


@asynccontextmanager
async def greeted(command: Sequence[str]) -> AsyncIterator[Host]:
    """A new host that has said hello. The block ends in order when its link is closed; then so has the host.

    Args:
        command: its program and arguments, before the path of its socket.

    Raises:
        HostFailedToStart, WireError, OSError: it did not come so far.
        HostDied: on leaving in order: how it ended.
    """
    token = secrets.token_hex(16)
    with shared_page() as page:
        async with (
            socket_directory() as path,
            await anyio.create_unix_listener(path, mode=0o600) as listener,
            spawned([*command, str(path)], token, page.fd) as process,
        ):
            async with await accept(listener, process) as stream:
                said = await hello(stream, token)
                path.unlink()  # nobody else is to connect, and a router that is killed leaves nothing behind
                path.parent.rmdir()
                yield Host(process, stream, said, page)
            with anyio.move_on_after(EXIT_DEADLINE_S):  # by itself, for then its status says why
                await process.wait()
            raise HostDied(how_it_ended(process.returncode))


@asynccontextmanager
async def socket_directory() -> AsyncIterator[Path]:
    """A directory for one host's socket, this user's alone: the path that the socket is to have."""
    # mkdtemp makes it 0700. The path is short: a Unix socket's is limited to about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="opta-", ignore_cleanup_errors=True) as directory:
        yield Path(directory) / "host.sock"


@asynccontextmanager
async def spawned(command: Sequence[str], token: str, heartbeat_fd: int) -> AsyncIterator[Process]:
    """A host process; on leaving: terminate, wait, kill, and log its last words."""
    environment = preload_environment({**os.environ, TOKEN_VARIABLE: token, HEARTBEAT_FD_VARIABLE: str(heartbeat_fd)})
    with anyio.CancelScope(shield=True):  # asyncio forgets a process whose start is cancelled, and nobody ends it
        process = await anyio.open_process(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(heartbeat_fd,),
            start_new_session=True,  # a Ctrl-C at the terminal is the router's to handle
        )
    relayed = anyio.Event()
    async with anyio.create_task_group() as tg:
        tg.start_soon(_relay_output, process, relayed)
        try:
            yield process
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
                with anyio.move_on_after(OUTPUT_DEADLINE_S):  # a child of the host may hold the pipes open
                    await relayed.wait()
                tg.cancel_scope.cancel()
                await process.aclose()


async def _end(process: Process) -> None:
    send_signal(process, signal.SIGTERM)
    with anyio.move_on_after(TERMINATE_DEADLINE_S):
        await process.wait()
    send_signal(process, signal.SIGKILL)
    await process.wait()


def send_signal(process: Process, number: signal.Signals) -> None:
    """Send a signal; nothing happens if the process has ended.

    Not with ``Process.send_signal``: before Python 3.12.8 and 3.13.1 that reaps a process that has just ended, and what
    waits for it is told 255 (https://github.com/python/cpython/issues/127049).
    """
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def how_it_ended(status: int | None) -> str:
    """An exit status in words; None: it has not ended."""
    if status is None:
        return "the host closed its link and did not end"
    if status < 0:
        name = next((known.name for known in signal.Signals if known == -status), f"signal {-status}")
        return f"the host was ended by {name}"
    return f"the host ended with status {status}"


async def _relay_output(process: Process, relayed: anyio.Event) -> None:
    """Put what the host prints into our log, line by line."""
    try:
        async with anyio.create_task_group() as tg:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    tg.start_soon(_relay_lines, stream)
    finally:
        relayed.set()


async def _relay_lines(stream: ByteReceiveStream) -> None:
    pending = ""
    async for text in TextReceiveStream(stream, errors="replace"):
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            host_log.info("%s", line)
    if pending:
        host_log.info("%s", pending)


async def accept(listener: SocketListener, process: Process) -> SocketStream:
    """The host's connection; fails at once if the process ends first.

    Raises:
        HostFailedToStart: it ended, did not connect in time, or somebody else connected.
    """
    accepted: list[SocketStream] = []
    with _deadline(HELLO_DEADLINE_S, "the host did not connect"):
        async with anyio.create_task_group() as tg:

            async def fail_if_it_ends() -> None:
                status = await process.wait()
                raise HostFailedToStart(f"the host ended with status {status} before it connected")

            tg.start_soon(fail_if_it_ends)
            accepted.append(await listener.accept())
            tg.cancel_scope.cancel()
    stream = accepted[0]
    uid = _peer_uid(stream)
    if uid is not None and uid != os.getuid():
        await stream.aclose()
        raise HostFailedToStart(f"user {uid} connected to the host's socket")
    return stream


def _peer_uid(stream: SocketStream) -> int | None:
    """The user behind a Unix socket, where the system tells (Linux)."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    credentials = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)


async def hello(stream: SocketStream, token: str) -> wire.Hello:
    """The host's first message.

    Raises:
        HostFailedToStart: it said something else, or nothing, or is not the host that was given ``token``.
        WireError: what it said is not our protocol.
    """
    reader: FrameReader[wire.FromHost] = FrameReader(wire.FromHost)
    with _deadline(HELLO_DEADLINE_S, "the host did not say hello"):
        while True:
            for message in reader.feed(await _receive(stream)):
                return _checked_hello(message, token)


async def _receive(stream: SocketStream) -> bytes:
    try:
        return await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError) as exc:
        raise HostFailedToStart("the host hung up before it said hello") from exc


def _checked_hello(message: wire.FromHost, token: str) -> wire.Hello:
    if not isinstance(message, wire.Hello):
        raise HostFailedToStart(f"the host began with {type(message).__name__}, not with Hello")
    if not hmac.compare_digest(message.token, token):
        raise HostFailedToStart("whoever connected is not the host that was started")
    if message.protocol != wire.PROTOCOL_VERSION:
        raise HostFailedToStart(f"the host speaks protocol {message.protocol}, not {wire.PROTOCOL_VERSION}")
    return message


@contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as exc:
        raise HostFailedToStart(f"{what} within {seconds:g} s") from exc
