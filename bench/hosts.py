"""``bench hosts``: the engine's process is killed and stopped under greedy streams on both lanes; they must not notice.

Three rounds of deaths: killed as soon as all streams go on again, so that nobody stands by; killed when another host
stands by, as one does a minute after a start; and stopped, which the watchdog has to notice. For each death: how
long until the next host took requests, and how long each stream paused. Every answer is compared with the one that the
same stream had before anything died. At the end the router is killed: its hosts must go with it, and leave no file.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import anyio
import httpx
import msgspec
import psutil

from bench import servers
from bench.client import AnswerFailedError, Completion, complete
from bench.reporting import Bar, add_save, at_most, machine, markdown, print_bars, save
from bench.statistics import median
from lanes import embedded
from lanes.watchdog import MIN_DEADLINE_S

CONFIG: Final = """
models:
  - {name: opta-tiny, target: "embedded:target", draft: "embedded:draft", keep_alive: -1, preload: true}
lanes:
  interactive: {weight: 1, max_active: 64}
  throughput: {weight: 1, max_active: 64}
"""
MAX_TOKENS: Final = 96
PROMPT_CHARS: Final = 120
WITHOUT_END: Final = {"0": -100, "4": -100}
"""The embedded target's end tokens: every answer has the same length."""
ON_ITS_WAY_S: Final = 0.3
"""What a host said before it was struck has arrived by then."""
GOING_PIECES: Final = 2
"""After so many pieces of its answer a stream goes on, in the sense of :mod:`lanes.resumption`."""
PATIENCE_S: Final = 120.0
POLL_S: Final = 0.02
BOUND_S: Final = 2.0
"""What noticing and replacing may take beyond the watchdog's deadline."""
ORPHANED_S: Final = 5.0
"""How long anything of a killed router may be there."""

How = Literal["killed", "killed with one standing by", "stopped"]


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """One host's end. Seconds from the signal: until the next host was ready, and each stream's pause."""

    how: How
    replaced_s: float
    pauses_s: list[float]
    said: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the streams saw, altogether."""

    answers: int
    changed: int
    errors: list[str]
    resumed: int
    deaths: list[Death]
    orphaned_s: float
    files_left: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--kills", type=int, default=10, help="in a row")
    parser.add_argument("--standby-kills", type=int, default=2, help="each when another host stands by")
    parser.add_argument("--stops", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16, help="half of them in each lane")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if nobody noticed and every stop was dealt with in time."""
    deaths: list[How] = ["killed"] * arguments.kills
    deaths += ["killed with one standing by"] * arguments.standby_kills
    deaths += ["stopped"] * arguments.stops
    outcome = anyio.run(_measured, arguments.streams, deaths)
    print(
        f"\n{arguments.streams} streams, {outcome.answers} answers, {outcome.resumed} resumptions; {machine()}\n\n"
        f"{table(outcome.deaths)}\n"
    )
    promises = bars(outcome)
    save(arguments.save, {"streams": arguments.streams, **msgspec.structs.asdict(outcome), "bars": promises})
    return print_bars(promises)


def table(deaths: Sequence[Death]) -> str:
    """One row for each way to die."""
    rows = []
    for how in dict.fromkeys(death.how for death in deaths):
        same = [death for death in deaths if death.how == how]
        replaced_s = [death.replaced_s for death in same]
        pauses_s = [pause_s for death in same for pause_s in death.pauses_s]
        figures = median(replaced_s), max(replaced_s), median(pauses_s), max(pauses_s)
        rows.append([how, str(len(same)), *(f"{seconds:.2f} s" for seconds in figures)])
    return markdown(["host", "times", "replaced: median", "worst", "streams' pause: median", "worst"], rows)


def bars(outcome: Outcome) -> list[Bar]:
    """What is promised of deaths."""
    stops_s = [death.replaced_s for death in outcome.deaths if death.how == "stopped"]
    deadline = f"s from a stop to the next host, worst (the watchdog's deadline is {MIN_DEADLINE_S:g} s)"
    return [
        at_most("errors that clients saw", len(outcome.errors), 0),
        at_most("answers that differ from the undisturbed one", outcome.changed, 0),
        at_most("s until the hosts of a killed router are gone", outcome.orphaned_s, ORPHANED_S),
        at_most("files that they leave", outcome.files_left, 0),
        *([at_most(deadline, max(stops_s), MIN_DEADLINE_S + BOUND_S)] if stops_s else []),
    ]


class _Stream:
    """One that is always there: an answer, and when it is over the same one again."""

    def __init__(self, client: httpx.AsyncClient, number: int) -> None:
        prompts = embedded.held_out_prompts()
        self._client = client
        self._lane = ("interactive", "throughput")[number % 2]
        self._prompt = prompts[number % len(prompts)].prompt[:PROMPT_CHARS]
        self.answers: list[Completion] = []
        self.errors: list[str] = []

    async def ask(self) -> None:
        body: dict[str, Any] = {"model": "opta-tiny", "prompt": self._prompt, "max_tokens": MAX_TOKENS}
        body |= {"temperature": 0, "logit_bias": WITHOUT_END}
        answer = Completion(time.perf_counter())
        self.answers.append(answer)
        try:
            await complete(self._client, body, {"x-opta-lane": self._lane}, answer)
        except (httpx.HTTPError, AnswerFailedError) as exc:
            self.errors.append(f"{type(exc).__name__}: {exc}")

    async def ask_until(self, over: Callable[[], bool]) -> None:
        while not over():
            await self.ask()

    def pieces_s(self, since_s: float) -> list[float]:
        """When the pieces of its answers came that came after ``since_s``."""
        return [at_s for answer in self.answers[-2:] for at_s, _ in answer.pieces if at_s > since_s]

    @property
    def texts(self) -> list[str]:
        """Its answers, in order."""
        return [answer.text for answer in self.answers if answer.ended_s is not None]


async def _measured(count: int, deaths: Sequence[How]) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        config = Path(scratch) / "opta.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        sockets = Path(scratch) / "s"
        sockets.mkdir()
        server = msgspec.structs.replace(servers.opta_router(config), environment={"TMPDIR": str(sockets)})
        async with servers.started(server) as router:
            streams = [_Stream(router.client, number) for number in range(count)]
            async with anyio.create_task_group() as tg:
                for stream in streams:
                    tg.start_soon(stream.ask)
            died = await _struck(router.client, streams, deaths)
            resumed = (await _engine(router.client))["resumed"]
            orphaned_s = await _orphaned(router.pid)
        return Outcome(
            answers=sum(len(stream.texts) for stream in streams),
            changed=sum(text != stream.texts[0] for stream in streams for text in stream.texts),
            errors=[error for stream in streams for error in stream.errors],
            resumed=resumed,
            deaths=died,
            orphaned_s=orphaned_s,
            files_left=len(list(sockets.glob("opta-*"))),  # MLX keeps compiled kernels there, for the next start
        )


async def _struck(client: httpx.AsyncClient, streams: Sequence[_Stream], deaths: Sequence[How]) -> list[Death]:
    chance, over, died = random.Random(4), anyio.Event(), list[Death]()
    async with anyio.create_task_group() as tg:
        for stream in streams:
            tg.start_soon(stream.ask_until, over.is_set)
        for how in deaths:
            if how == "killed with one standing by":
                await _until(partial(_stands_by, client))
            await anyio.sleep(chance.uniform(0, 1))
            death = await _death(client, streams, how)
            died.append(death)
            paused = f"streams paused {median(death.pauses_s):.2f} s at the median, {max(death.pauses_s):.2f} s at most"
            print(f"{how}: replaced after {death.replaced_s:.2f} s, {paused} ({death.said})", flush=True)
        over.set()
    return died


async def _death(client: httpx.AsyncClient, streams: Sequence[_Stream], how: How) -> Death:
    """Strike the host, and return when all streams go on."""
    pid = (await _engine(client))["pid"]
    os.kill(pid, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
    struck_s = time.perf_counter()

    async def replaced() -> bool:
        engine = await _engine(client)
        return engine["pid"] not in (None, pid) and engine["state"] == "ready"

    await _until(replaced)
    replaced_s = time.perf_counter() - struck_s

    async def all_go_on() -> bool:
        return all(len(stream.pieces_s(struck_s + ON_ITS_WAY_S)) >= GOING_PIECES for stream in streams)

    await _until(all_go_on)
    return Death(
        how=how,
        replaced_s=round(replaced_s, 3),
        pauses_s=[round(stream.pieces_s(struck_s + ON_ITS_WAY_S)[0] - struck_s, 3) for stream in streams],
        said=(await _engine(client))["last_failure"],
    )


async def _orphaned(router_pid: int) -> float:
    """Kill the router; seconds until none of its processes is left."""
    hosts = psutil.Process(router_pid).children()
    os.kill(router_pid, signal.SIGKILL)
    killed_s = time.perf_counter()

    async def gone() -> bool:
        return not any(_is_there(host) for host in hosts)

    await _until(gone)
    return round(time.perf_counter() - killed_s, 3)


def _is_there(host: psutil.Process) -> bool:
    try:
        return bool(host.is_running() and host.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def _stands_by(client: httpx.AsyncClient) -> bool:
    return (await _engine(client))["standby_pid"] is not None


async def _engine(client: httpx.AsyncClient) -> dict[str, Any]:
    engine: dict[str, Any] = (await client.get("/admin/status")).raise_for_status().json()["engine"]
    return engine


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Raises TimeoutError."""
    with anyio.fail_after(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - of other processes
            await anyio.sleep(POLL_S)
