"""``bench fairness``: one client has two hundred requests in a lane's queue, and another comes with two.

The lane serves one request at a time, and a wait is counted in *services*: answers of the lane, by whomever asked, from
sending the request to its own answer. Start-time fair queueing (see ``lanes.fair_share``) promises the client of weight
``w`` beside one of weight ``W`` that its ``k``-th request is answered after at most ``1 + floor((k - 1) * W / w) + k``
services: the one that runs, the other's share meanwhile, its own. With equal weights that is ``2 k``. For comparison
the same two requests under the first client's own key, where the queue is first come, first served.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import httpx
import msgspec

from bench import servers
from bench.reporting import Bar, add_save, at_least, at_most, machine, markdown, print_bars, save

FLOOD: Final = "flood"
WEIGHTS: Final = {"equal": 1.0, "heavier": 4.0, "lighter": 0.25}
"""Of those who come second; the first has 1."""
REQUESTS: Final = 2
SERVED_TIMEOUT_S: Final = 30.0
UNFAIR_TO_FAIR: Final = 20.0
ON_ITS_WAY: Final = 1
"""A service may end between the sending of a request and its arrival."""

CONFIG: Final = """
models:
  - {name: scripted, target: "scripted:tokens_per_step=10,step_s=0.02", keep_alive: -1, preload: true}
lanes:
  throughput: {max_active: 1, max_queue: 10000}
"""
BODY: Final = {"model": "scripted", "prompt": "ab", "max_tokens": 20}


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Services until the ``number``-th request of a client was answered: the worst of all rounds, and the promise."""

    client: str
    weight: float
    number: int
    services: int
    promised: int | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--queued", type=int, default=200, help="requests of the first client")
    parser.add_argument("--rounds", type=int, default=5, help="how often each other client comes")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if nobody waited for longer than fairness says."""
    waits = measure(arguments.queued, arguments.rounds)
    promises = bars(waits)
    print(f"{arguments.queued} requests queued, then {REQUESTS} more, {arguments.rounds} rounds; {machine()}\n")
    print(table(waits) + "\n")
    save(arguments.save, {"queued": arguments.queued, "rounds": arguments.rounds, "waits": waits, "bars": promises})
    return print_bars(promises)


def measure(queued: int, rounds: int) -> list[Wait]:
    """Blocks until done."""
    keys = {name: secrets.token_urlsafe(24) for name in (FLOOD, *WEIGHTS)}
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        config = Path(scratch) / "opta.yaml"
        config.write_text(CONFIG + _clients(keys), "utf-8")
        return anyio.run(_measure, config, keys, queued, rounds)


def _clients(keys: dict[str, str]) -> str:
    clients = [
        {"name": name, "key_sha256": hashlib.sha256(key.encode()).hexdigest(), "weight": WEIGHTS.get(name, 1.0)}
        for name, key in keys.items()
    ]
    return f"clients: {msgspec.json.encode(clients).decode()}\n"


async def _measure(config: Path, keys: dict[str, str], queued: int, rounds: int) -> list[Wait]:
    async with servers.running(servers.opta_router(config)) as client:
        lane = _Lane(client, keys)
        waits = []
        async with lane.flooded(queued):
            for name, weight in WEIGHTS.items():
                worst = [0] * REQUESTS
                for _ in range(rounds):
                    worst = [max(pair) for pair in zip(worst, await lane.waits_of(name), strict=True)]
                    # A client that comes back at once still owes for its last request.
                    await lane.served(1 + math.ceil(1 / weight))
                waits += _told(name, weight, worst, promised=True)
        async with lane.flooded(queued):
            waits += _told("the first client itself", 1.0, await lane.waits_of(FLOOD), promised=False)
        return waits


def _told(client: str, weight: float, services: list[int], *, promised: bool) -> list[Wait]:
    return [
        Wait(
            client=client,
            weight=weight,
            number=number,
            services=waited,
            promised=1 + math.floor((number - 1) / weight) + number if promised else None,
        )
        for number, waited in enumerate(services, start=1)
    ]


class _Lane:
    """The lane as its clients see it: how many answers it has given."""

    def __init__(self, client: httpx.AsyncClient, keys: dict[str, str]) -> None:
        self._client = client
        self._keys = keys
        self._answers = 0
        self._answered = anyio.Event()

    @asynccontextmanager
    async def flooded(self, requests: int) -> AsyncIterator[None]:
        """The first client's requests are in the lane when the block begins, and answered when it has ended."""
        offered = await self._offered() + requests
        async with anyio.create_task_group() as tg:
            for _ in range(requests):
                tg.start_soon(self.ask, FLOOD)
            while await self._offered() < offered:  # noqa: ASYNC110 - another process has no event
                await anyio.sleep(0.01)
            yield

    async def ask(self, name: str) -> None:
        headers = {"authorization": f"Bearer {self._keys[name]}", "x-opta-lane": "throughput"}
        (await self._client.post("/v1/completions", json=BODY, headers=headers)).raise_for_status()
        self._answers += 1
        self._answered.set()
        self._answered = anyio.Event()

    async def waits_of(self, name: str) -> list[int]:
        """Services until each of a client's requests was answered, that were sent together."""
        before, waits = self._answers, list[int]()

        async def one() -> None:
            await self.ask(name)
            waits.append(self._answers - before)

        async with anyio.create_task_group() as tg:
            for _ in range(REQUESTS):
                tg.start_soon(one)
        return waits

    async def served(self, count: int) -> None:
        """Return when the lane has given so many more answers.

        Raises:
            TimeoutError: nobody waits for one any more.
        """
        until = self._answers + count
        with anyio.fail_after(SERVED_TIMEOUT_S):
            while self._answers < until:
                await self._answered.wait()

    async def _offered(self) -> int:
        """Requests that the lane has had or has."""
        lane = (await self._client.get("/admin/lanes")).raise_for_status().json()["throughput"]
        return int(lane["granted"]) + int(lane["queued"])


def bars(waits: Sequence[Wait]) -> list[Bar]:
    """What fairness says, and how much better it is than the order of arrival."""
    promised = [wait for wait in waits if wait.promised is not None]
    last = {wait.client: wait.services for wait in waits}
    unfair, fair = waits[-1].services, last["equal"]
    return [
        *(
            at_most(f"services until request {wait.number} of the {wait.client} client", wait.services, _bound(wait))
            for wait in promised
        ),
        at_least("services without fairness, as a multiple of those with it", unfair / fair, UNFAIR_TO_FAIR),
    ]


def _bound(wait: Wait) -> int:
    return (wait.promised or 0) + ON_ITS_WAY


def table(waits: Sequence[Wait]) -> str:
    """A row for each request."""
    rows = [
        [wait.client, f"{wait.weight:g}", str(wait.number), str(wait.services), str(wait.promised or "-")]
        for wait in waits
    ]
    return markdown(["second client", "weight", "request", "services, worst", "promised"], rows)
