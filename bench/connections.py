"""``bench connections``: a thousand idle clients, two hundred that ask and wait, and fifty of those that vanish.

Everything is counted at the start, while all are there, and when all have gone: the router's slots and queue, the
host's sequences, the descriptors of both processes, their memory. The same round is run several times. Counts must be
back after each. Of memory the median round counts, after three in which caches fill: a leak grows with every round.

What the router *holds* tells a leak from noise (:mod:`bench.router_memory`), to within half an object for each client
that vanished; the event loop alone keeps up to a hundred timers that were cancelled. What a process *occupies* is
shown, too: Python takes memory from the system by the mebibyte, whenever a round needs a little more at its peak than
those before it.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import anyio
import httpx
import msgspec
import psutil

from bench import router_memory, servers
from bench.reporting import Bar, add_save, at_least, at_most, machine, markdown, print_bars, save
from bench.statistics import median
from opta_router.server import ServerLimits, make_room

CONFIG: Final = """
server: {standby: false}
models:
  - {name: scripted, target: "scripted:step_s=0.005", keep_alive: -1, preload: true}
lanes:
  throughput: {max_active: 8, max_queue: 10000}
"""
IDLE_REQUEST: Final = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
ANSWER_TOKENS: Final = 100
OPENED_TOGETHER: Final = 50
SETTLE_TIMEOUT_S: Final = 30.0
RESET: Final = struct.pack("ii", 1, 0)
PEAK: Final = 0.9
"""Share of the requests that must be there at one time; the first have been answered by then."""
IDLE_KIB: Final = 32
WARM_UP_ROUNDS: Final = 3
OBJECTS_LEFT: Final = 0.5
"""That a client which vanishes may leave: half of the least that a leak could be."""
LARGE_BYTES_LEFT: Final = 256
"""The same in bytes that the C library gave out, of which an object there takes at least 512."""
GROWTH_KIB: Final = 128
"""By which a process may grow: a tenth of a KiB for each connection."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one round opens, how many of those that wait vanish, and how often it is run."""

    idle: int = 1000
    waiting: int = 200
    vanishing: int = 50
    rounds: int = 8


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What router and host have in hand at one moment."""

    active: int
    queued: int
    on_device: int
    router_descriptors: int
    host_descriptors: int


class Snapshot(Counts, frozen=True, kw_only=True):
    """The same, with their memory."""

    router_blocks: int
    router_malloc_kib: int | None
    router_kib: int
    host_kib: int

    def counts(self) -> Counts:
        """Without it."""
        return Counts(**{name: getattr(self, name) for name in Counts.__struct_fields__})


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One round: before it, with all idle connections open, with all requests waiting too, and when all have gone."""

    start: Snapshot
    idle: Snapshot
    peak: Snapshot
    end: Snapshot
    answered: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--idle", type=int, default=1000, help="connections that wait for their next request")
    parser.add_argument("--waiting", type=int, default=200, help="requests in the lane at a time")
    parser.add_argument("--vanishing", type=int, default=50, help="of the waiting ones; half by FIN, half by RST")
    parser.add_argument("--rounds", type=int, choices=range(5, 100), default=8, metavar="5..99")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if nothing was left behind."""
    load = Load(idle=arguments.idle, waiting=arguments.waiting, vanishing=arguments.vanishing, rounds=arguments.rounds)
    rounds = measure(load)
    print(f"{load.idle} idle connections, {load.waiting} requests, {load.vanishing} vanish; {machine()}\n")
    print(table(rounds) + "\n")
    promises = bars(rounds, load)
    save(arguments.save, {"load": load, "rounds": rounds, "bars": promises})
    return print_bars(promises)


def measure(load: Load) -> list[Round]:
    """Run all rounds against one router; blocks until done."""
    make_room(ServerLimits(max_connections=load.idle + load.waiting))  # this process holds the other ends
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        config = Path(scratch) / "opta.yaml"
        config.write_text(CONFIG, "utf-8")
        return anyio.run(_measure, config, load)


async def _measure(config: Path, load: Load) -> list[Round]:
    held = config.with_name("held.json")
    async with servers.started(_telling(servers.opta_router(config), held)) as router:
        watched = _Watched(router, held)
        return [await _round(watched, load) for _ in range(load.rounds)]


def _telling(router: servers.Server, held: Path) -> servers.Server:
    """The same router, that can be asked what it holds."""
    (
        python,
        *_,
    ) = router.command
    arguments = router.command[router.command.index("serve") :]
    command = (python, "-m", "bench.router_memory", str(held), *arguments)
    return msgspec.structs.replace(router, command=command)


class _Watched:
    """A router, its host, and what they hold."""

    def __init__(self, router: servers.Running, held: Path) -> None:
        self.port = router.port
        self._held = held
        self._client = router.client
        self._router = psutil.Process(router.pid)
        (self._host,) = self._router.children()

    async def counts(self) -> Counts:
        lane = (await self._client.get("/admin/lanes")).raise_for_status().json()["throughput"]
        return Counts(
            active=lane["active"],
            queued=lane["queued"],
            on_device=lane["on_device"],
            router_descriptors=self._router.num_fds(),
            host_descriptors=self._host.num_fds(),
        )

    async def snapshot(self, counts: Counts | None = None) -> Snapshot:
        counts = counts or await self.counts()
        held = await router_memory.held_by(self._router.pid, self._held)
        return Snapshot(
            **msgspec.structs.asdict(counts),
            router_blocks=held.blocks,
            router_malloc_kib=None if held.malloc_bytes is None else held.malloc_bytes // 1024,
            router_kib=self._router.memory_info().rss // 1024,
            host_kib=self._host.memory_info().rss // 1024,
        )

    async def once(self, holds: Callable[[Counts], bool]) -> Snapshot:
        """When it holds of the counts, or the time is up."""
        with anyio.move_on_after(SETTLE_TIMEOUT_S):
            while not holds(counts := await self.counts()):  # noqa: ASYNC110 - another process has no event
                await anyio.sleep(0.1)
        return await self.snapshot(counts)


async def _round(watched: _Watched, load: Load) -> Round:
    start = await watched.snapshot()
    idle = await _opened(load.idle, lambda: _idle(watched.port))
    with_idle = await watched.snapshot()
    waiting = await _opened(load.waiting, lambda: _asking(watched.port))
    peak = await watched.once(lambda now: now.active + now.queued >= PEAK * load.waiting)
    vanishing = set(waiting[:: load.waiting // load.vanishing][: load.vanishing])  # of those that run, too
    for number, client in enumerate(vanishing):
        client.vanish(reset=number % 2 == 0)
    answered = sum(await asyncio.gather(*(client.is_answered() for client in waiting if client not in vanishing)))
    for client in idle + waiting:
        client.writer.close()
    end = await watched.once(lambda now: now == start.counts())
    return Round(start=start, idle=with_idle, peak=peak, end=end, answered=answered)


class _Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def vanish(self, *, reset: bool) -> None:
        if reset:
            connection = self.writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.writer.transport.abort()
        else:
            self.writer.close()

    async def is_answered(self) -> bool:
        """Whether a whole answer with status 200 comes."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await self.reader.readexactly(int(length.partition(b":")[2]))
        return head.startswith(b"HTTP/1.1 200 ")


async def _opened(count: int, connect: Callable[[], Awaitable[_Client]]) -> list[_Client]:
    """``count`` connections, not more at a time than the router's backlog takes."""
    clients: list[_Client] = []
    while len(clients) < count:
        together = min(OPENED_TOGETHER, count - len(clients))
        clients += await asyncio.gather(*(connect() for _ in range(together)))
    return clients


async def _idle(port: int) -> _Client:
    """A connection that has been answered once, and stays."""
    client = _Client(*await asyncio.open_connection("127.0.0.1", port))
    client.writer.write(IDLE_REQUEST)
    if not await client.is_answered():
        raise RuntimeError("the router refused a connection")
    return client


async def _asking(port: int) -> _Client:
    """A connection that has asked for an answer."""
    client = _Client(*await asyncio.open_connection("127.0.0.1", port))
    body = msgspec.json.encode({"model": "scripted", "prompt": "ab", "max_tokens": ANSWER_TOKENS})
    request = httpx.Request(
        "POST",
        f"http://localhost:{port}/v1/completions",
        headers={"content-type": "application/json", "x-opta-lane": "throughput"},
        content=body,
    )
    head = b"".join(b"%s: %s\r\n" % header for header in request.headers.raw)
    client.writer.write(b"POST /v1/completions HTTP/1.1\r\n" + head + b"\r\n" + body)
    return client


def per_idle_kib(first: Round, load: Load) -> float:
    """Memory of the router for one idle connection: of the first round, whose memory nobody had used before."""
    return (first.idle.router_kib - first.start.router_kib) / load.idle


def bars(rounds: Sequence[Round], load: Load) -> list[Bar]:
    """What must be back where it was."""

    def left(name: str) -> int:
        return max(int(getattr(each.end, name)) - int(getattr(each.start, name)) for each in rounds)

    def grown(name: str) -> float:
        """In the median round, once warm."""
        ends = [getattr(each.end, name) or 0 for each in rounds[WARM_UP_ROUNDS - 1 :]]
        return median([after - before for before, after in pairwise(ends)])

    at_peak = min(each.peak.active + each.peak.queued for each in rounds)
    answered = min(each.answered for each in rounds)
    left_objects = grown("router_blocks") / load.vanishing
    left_bytes = grown("router_malloc_kib") * 1024 / load.vanishing
    large_is_known = all(each.end.router_malloc_kib is not None for each in rounds)
    return [
        at_least("requests under way at the peak", at_peak, PEAK * load.waiting),
        at_least("of those that stayed, answered", answered, load.waiting - load.vanishing),
        *(
            at_most(f"{name.replace('_', ' ')} left behind", left(name), 0)
            for name in ("active", "queued", "on_device", "router_descriptors", "host_descriptors")
        ),
        at_most("KiB of the router for one idle connection", per_idle_kib(rounds[0], load), IDLE_KIB),
        at_most("objects left in the router by a client that vanished", left_objects, OBJECTS_LEFT),
        *([at_most("bytes of the C library left by it", left_bytes, LARGE_BYTES_LEFT)] if large_is_known else []),
        at_most("KiB by which the router grew in a round", grown("router_kib"), GROWTH_KIB),
        at_most("KiB by which the host grew in a round", grown("host_kib"), GROWTH_KIB),
    ]


def table(rounds: Sequence[Round]) -> str:
    """A row for each moment of each round."""
    names = Snapshot.__struct_fields__
    rows = [
        [f"{number} {moment}", *(str(getattr(getattr(each, moment), name)) for name in names)]
        for number, each in enumerate(rounds, start=1)
        for moment in ("start", "idle", "peak", "end")
    ]
    return markdown(["round", *(name.replace("_", " ") for name in names)], rows)
