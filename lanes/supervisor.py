"""Keeps one host alive: spawns it, shakes hands under a deadline, restarts it when it dies, ends it with the router."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio.abc import ByteReceiveStream, Process, SocketAttribute, SocketListener, SocketStream, TaskStatus
from anyio.streams.text import TextReceiveStream

from lanes import wire
from lanes.blas import preload_environment
from lanes.client import Generation, Link, OnEnd, OnProgress
from lanes.errors import HostDied, HostFailedToStart, HostUnavailable, WireError
from lanes.pairs import PairPolicy, Pairs
from lanes.states import HostEvent, HostState, after

log = logging.getLogger(__name__)
host_log = logging.getLogger("lanes.host.output")

HELLO_DEADLINE_S: Final = 30.0
READY_DEADLINE_S: Final = 600.0
TERMINATE_DEADLINE_S: Final = 3.0
OUTPUT_DEADLINE_S: Final = 1.0
BACKOFF_S: Final = (0.0, 1.0, 3.0, 8.0, 18.0, 30.0)
"""Wait before each start in a row that did not become ready; the last repeats: at most five starts a minute."""

HOST_COMMAND: Final = (sys.executable, "-m", "lanes.host")


class HostSettings(msgspec.Struct, frozen=True):
    """What a host is told when it starts, and what decides which of the models it loads."""

    lanes: Mapping[wire.Lane, wire.LaneSpec]
    models: tuple[wire.ModelSpec, ...]
    pairs: PairPolicy = PairPolicy()


class Supervisor:
    """Owns the host process. :meth:`run` is its one task; everything else is synchronous and on the same event loop.

    Args:
        settings: what every host is told when it starts.
        command: the host's program and arguments, before the path of its socket.
    """

    def __init__(self, settings: HostSettings, command: Sequence[str] = HOST_COMMAND) -> None:
        self._settings = settings
        self._command = command
        self._state = HostState.STOPPED
        self._link: Link | None = None
        self._failed_starts = 0
        self._listens = anyio.Event()  # the host has said Ready
        self._became_ready = anyio.Event()
        self._was_lost = anyio.Event()
        self.pairs = Pairs(settings.models, settings.pairs)
        self.stats: wire.Stats | None = None
        self._device_s_before: dict[wire.Lane, float] = dict.fromkeys(settings.lanes, 0.0)  # of the hosts that are gone
        self.versions: wire.Versions | None = None
        self.host_pid: int | None = None
        self.restarts = 0
        self.last_failure: str | None = None

    @property
    def state(self) -> HostState:
        """Where the host is in its life."""
        return self._state

    def not_ready_reasons(self) -> list[str]:
        """Why no request can be taken now; empty if one can."""
        reasons = [] if self._state is HostState.READY else [f"engine is {self._state}"]
        if self._state is HostState.STARTING and self.pairs.starting:
            reasons.append(f"loading {', '.join(self.pairs.starting)}")
        if self._state is HostState.RESTARTING and self.last_failure:
            reasons.append(self.last_failure)
        return reasons

    @property
    def device_s(self) -> dict[wire.Lane, float]:
        """Device time that each lane has had from every host so far: it never goes back.

        As of the last heartbeat; what a host did after its last one is lost with it.
        """
        now = self.stats.lanes if self.stats is not None else {}
        return {
            lane: before_s + (now[lane].device_s if lane in now else 0.0)
            for lane, before_s in self._device_s_before.items()
        }

    async def wait_ready(self) -> None:
        """Return when the host takes requests."""
        while self._state is not HostState.READY:
            await self._became_ready.wait()

    async def wait_lost(self) -> None:
        """Return when the host that runs now, or starts next, is lost."""
        await self._was_lost.wait()

    def submit(self, submit: wire.Submit, on_end: OnEnd, on_progress: OnProgress | None = None) -> Generation:
        """Hand a request to the host; see :meth:`lanes.client.Link.submit`.

        Raises:
            HostUnavailable: no host is ready.
        """
        if self._link is None or self._state is not HostState.READY:
            raise HostUnavailable("; ".join(self.not_ready_reasons()) or "the engine is not running")
        return self._link.submit(submit, on_end, on_progress)

    def set_lanes(self, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> None:
        """Change weights and limits, here and in every host to come."""
        self._settings = msgspec.structs.replace(self._settings, lanes={**self._settings.lanes, **lanes})
        if self._link is not None:
            self._link.send_soon(wire.SetLanes(dict(lanes)))

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep a host running until cancelled; then end it, and wait for its end."""
        task_status.started()
        try:
            while True:
                await anyio.sleep(BACKOFF_S[min(self._failed_starts, len(BACKOFF_S) - 1)])
                self._happened(HostEvent.SPAWN)
                self._failed_starts += 1
                try:
                    await self._one_life()
                except* (HostDied, HostFailedToStart, WireError, OSError) as group:
                    self.last_failure = "; ".join(str(exc) for exc in _leaves(group))
                self._happened(HostEvent.DIED)
                self.restarts += 1
                log.error("host lost: %s", self.last_failure)
        finally:
            self._happened(HostEvent.STOP)

    def _happened(self, event: HostEvent) -> None:
        self._state = after(self._state, event)
        if self._state is HostState.READY:
            self._failed_starts = 0
            self._became_ready.set()
            self._became_ready = anyio.Event()
        elif event is not HostEvent.SPAWN:
            self._link = None
            self.pairs.host_lost()
            self._device_s_before = self.device_s
            self.stats = None
            self._was_lost.set()
            self._was_lost = anyio.Event()
            self.host_pid = None

    async def _one_life(self) -> None:
        token = secrets.token_hex(16)
        async with (
            _socket_directory() as path,
            await anyio.create_unix_listener(path, mode=0o600) as listener,
            _process([*self._command, str(path)], token) as process,
        ):
            with _deadline(HELLO_DEADLINE_S, "the host did not connect"):
                stream = await _accept(listener, process)
            async with stream:
                hello = await self._hello(stream, token)
                path.unlink()  # nobody else is to connect, and a router that is killed leaves nothing behind
                path.parent.rmdir()
                await self._serve(stream, hello)
            with anyio.move_on_after(TERMINATE_DEADLINE_S):  # by itself, for then its status says why
                await process.wait()
            raise HostDied(_how_it_ended(process.returncode))

    async def _hello(self, stream: SocketStream, token: str) -> wire.Hello:
        reader: wire.FrameReader[wire.FromHost] = wire.FrameReader(wire.FromHost)
        with _deadline(HELLO_DEADLINE_S, "the host did not say hello"):
            while True:
                for message in reader.feed(await _receive(stream)):
                    return _checked_hello(message, token)

    async def _serve(self, stream: SocketStream, hello: wire.Hello) -> None:
        self.versions = hello.versions
        self.host_pid = hello.pid
        self._listens = anyio.Event()
        link = Link(stream, on_message=self._received)
        self._link = link
        link.send_soon(wire.Configure(dict(self._settings.lanes), self._settings.models))
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._watch_start)
            tg.start_soon(self.pairs.run)
            self.pairs.host_started(hello.versions.memory_bytes, link.send_soon, self._ready_if_all_is_there)
            await link.run()
            tg.cancel_scope.cancel()

    async def _watch_start(self) -> None:
        """A load takes the time it takes, and a download more; only the host itself has a deadline."""
        with _deadline(READY_DEADLINE_S, "the host was not ready"):
            await self._listens.wait()

    def _ready_if_all_is_there(self) -> None:
        if self._listens.is_set() and self._state is HostState.STARTING and not self.pairs.starting:
            self._happened(HostEvent.READY)

    def _received(self, message: wire.FromHost) -> None:
        match message:
            case wire.Ready() if not self._listens.is_set():
                self._listens.set()
                self._ready_if_all_is_there()
            case wire.Stats():
                self.stats = message
            case _ if not self.pairs.received(message):
                raise WireError(f"unexpected {type(message).__name__} from the host")


@asynccontextmanager
async def _socket_directory() -> AsyncIterator[Path]:
    # mkdtemp makes it 0700. The path is short: a Unix socket's is limited to about a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="opta-", ignore_cleanup_errors=True) as directory:
        yield Path(directory) / "host.sock"


@asynccontextmanager
async def _process(command: Sequence[str], token: str) -> AsyncIterator[Process]:
    """The host process; on leaving: terminate, wait, kill, and log its last words."""
    environment = preload_environment({**os.environ, "OPTA_HOST_TOKEN": token})
    process = await anyio.open_process(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
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
    try:
        if process.returncode is None:
            process.terminate()
            with anyio.move_on_after(TERMINATE_DEADLINE_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
    except ProcessLookupError:
        pass
    await process.wait()


def _how_it_ended(status: int | None) -> str:
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


async def _accept(listener: SocketListener, process: Process) -> SocketStream:
    """The host's connection; fails at once if the process ends first.

    Raises:
        HostFailedToStart: it ended, or somebody else connected.
    """
    accepted: list[SocketStream] = []
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


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    return [
        leaf for exc in group.exceptions for leaf in (_leaves(exc) if isinstance(exc, BaseExceptionGroup) else [exc])
    ]
