"""``bench mixed``: one person asks again and again while background streams keep the other lane full.

The person asks short questions, at random times so as not to fall in step with the server; the background streams are
agents, each call of which carries a context of many tokens and wants a short answer. Each server goes through the same
three phases on the same prompts: the person alone, the background alone, both. Every prompt begins with a line of its
own, so that nobody's prefix cache helps. Tokens are counted by encoding the text that arrived with the pair's
tokenizer, for every server alike.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import anyio
import httpx
import msgspec
from tokenizers import Tokenizer

from bench import servers
from bench.client import Completion, complete
from bench.reporting import Bar, add_save, at_least, at_most, machine, markdown, print_bars, save
from bench.statistics import median, quantile
from lanes import embedded

MIN_ANSWERS: Final = 10
MAX_BUSY_S: Final = 180.0
SETTLE_TIMEOUT_S: Final = 30.0


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of each server. Weights are those of the lanes, interactive first."""

    background: int = 8
    rounds: int = 16
    busy_s: float = 60.0
    interactive_prompt_tokens: int = 64
    interactive_tokens: int = 64
    background_prompt_tokens: int = 2000
    background_tokens: int = 128
    solo_s: float = 30.0
    think_s: float = 1.0
    weights: tuple[float, float] = (8.0, 1.0)
    seed: int = 1


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One server's figures. Interactive tokens/s count from asking to the last token: what the person sees."""

    server: str
    ttft_idle_ms: float
    ttft_busy_ms: float
    ttft_busy_p95_ms: float
    ttft_busy_worst_ms: float
    busy_to_idle: float
    interactive_idle_tokens_per_s: float
    interactive_busy_tokens_per_s: float
    background_solo_tokens_per_s: float
    background_busy_tokens_per_s: float
    background_kept: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--background", type=int, default=8, help="background streams")
    parser.add_argument("--context", type=int, default=2000, metavar="TOKENS", help="prompt of a background request")
    parser.add_argument("--rounds", type=int, default=16, help="questions to the idle server")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the person asks the busy server")
    parser.add_argument("--weights", type=float, nargs=2, default=(8.0, 1.0), metavar=("INTERACTIVE", "THROUGHPUT"))
    parser.add_argument("--peers", action="store_true", help="the same load against mlx_lm.server and vllm-mlx serve")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    load = Load(
        background=arguments.background,
        background_prompt_tokens=arguments.context,
        rounds=arguments.rounds,
        busy_s=arguments.seconds,
        weights=tuple(arguments.weights),
    )
    rows = measure(load, with_peers=arguments.peers)
    promises = bars(rows, load)
    print(
        f"{load.background} background streams with prompts of {load.background_prompt_tokens} tokens, "
        f"weights {load.weights[0]:g}:{load.weights[1]:g}, {machine()}\n"
    )
    print(table(rows) + "\n")
    status = print_bars(promises)
    save(arguments.save, {"load": load, "rows": rows, "bars": promises})
    return status


def measure(load: Load, *, with_peers: bool) -> list[Row]:
    """All servers in turn, ours first."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch, servers.fp32_weights() as weights:
        config = Path(scratch) / "opta.yaml"
        interactive, throughput = load.weights
        config.write_text(
            f"lanes:\n  interactive: {{weight: {interactive:g}}}\n  throughput: {{weight: {throughput:g}}}\n", "utf-8"
        )
        under_test = [servers.opta_router(config), *(servers.peers(weights) if with_peers else ())]
        return [anyio.run(_measure_one, server, load) for server in under_test]


async def _measure_one(server: servers.Server, load: Load) -> Row:
    async with servers.running(server) as client:
        scene = _Scene(server, client, load)
        await scene.warm_up()
        idle = await scene.person()
        solo = await scene.background_alone()
        busy, background = await scene.both()
    ttft_idle, ttft_busy = _ttfts_ms(idle), _ttfts_ms(busy)
    return Row(
        server=server.name,
        ttft_idle_ms=median(ttft_idle),
        ttft_busy_ms=median(ttft_busy),
        ttft_busy_p95_ms=quantile(ttft_busy, 0.95),
        ttft_busy_worst_ms=max(ttft_busy),
        busy_to_idle=median(ttft_busy) / median(ttft_idle),
        interactive_idle_tokens_per_s=scene.seen_tokens_per_s(idle),
        interactive_busy_tokens_per_s=scene.seen_tokens_per_s(busy),
        background_solo_tokens_per_s=solo,
        background_busy_tokens_per_s=background,
        background_kept=background / solo,
    )


class _Scene:
    """One server, and the load on it."""

    def __init__(self, server: servers.Server, client: httpx.AsyncClient, load: Load) -> None:
        self._server = server
        self._client = client
        self._load = load
        self._tokenizer = Tokenizer.from_file(str(embedded.path("target") / "tokenizer.json"))
        self._questions = self._prompts(load.interactive_prompt_tokens)
        self._contexts = self._prompts(load.background_prompt_tokens)

    async def warm_up(self) -> None:
        """Compile, fill pools, reach the clock speed: a little of everything that is measured later."""
        await self._ask(16)
        async with self._background() as background:
            await background.settled()
            await self._ask(16)

    async def person(self, at_least_s: float = 0.0) -> list[Completion]:
        """One question after the other, with a pause to read: ``rounds`` of them, or for ``at_least_s``."""
        pauses = random.Random(self._load.seed)
        answers: list[Completion] = []
        started_s = time.perf_counter()

        def enough() -> bool:
            asked_s = time.perf_counter() - started_s
            if not at_least_s:
                return len(answers) >= self._load.rounds
            return asked_s >= MAX_BUSY_S or (asked_s >= at_least_s and len(answers) >= MIN_ANSWERS)

        while not enough():
            answers.append(await self._ask(self._load.interactive_tokens))
            await anyio.sleep(pauses.expovariate(1 / self._load.think_s))
        return answers

    async def background_alone(self) -> float:
        """Background tokens/s with nobody asking."""
        async with self._background() as background:
            await background.settled()
            started_s = time.perf_counter()
            await anyio.sleep(self._load.solo_s)
            return self._tokens_per_s(background.streams, started_s, time.perf_counter())

    async def both(self) -> tuple[list[Completion], float]:
        """The person's answers while the background runs, and background tokens/s in that time."""
        async with self._background() as background:
            await background.settled()
            started_s = time.perf_counter()
            answers = await self.person(self._load.busy_s)
            return answers, self._tokens_per_s(background.streams, started_s, time.perf_counter())

    def seen_tokens_per_s(self, answers: Sequence[Completion]) -> float:
        """Tokens of all answers over the time spent waiting for them."""
        waited_s = sum((answer.ended_s or 0.0) - answer.asked_s for answer in answers)
        return sum(self._count(answer.text) for answer in answers) / waited_s

    async def _ask(self, max_tokens: int) -> Completion:
        answer = Completion(time.perf_counter())
        body = self._body(next(self._questions), max_tokens, temperature=0.0)
        await complete(self._client, body, self._server.interactive_headers, answer)
        if not answer.pieces:
            raise RuntimeError(f"{self._server.name} answered with nothing")
        return answer

    def _background(self) -> _Background:
        return _Background(self._load.background, self._work)

    async def _work(self, answer: Completion) -> None:
        body = self._body(next(self._contexts), self._load.background_tokens, temperature=0.7)
        await complete(self._client, body, self._server.background_headers, answer)

    def _body(self, prompt: str, max_tokens: int, temperature: float) -> dict[str, Any]:
        return {"model": self._server.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}

    def _prompts(self, tokens: int) -> Iterator[str]:
        """Held-out code of about so many tokens, for ever, each under a line that no other has."""
        rng = random.Random(f"{self._load.seed} {tokens}")
        code = [prompt.prompt for prompt in embedded.held_out_prompts()]
        while True:
            ids: list[int] = []
            while len(ids) < tokens:
                ids = self._tokenizer.encode(rng.choice(code)).ids + ids
            yield f"# {rng.randrange(10**9):09d}\n{self._tokenizer.decode(ids[-tokens:])}"

    def _tokens_per_s(self, streams: Sequence[Completion], start_s: float, end_s: float) -> float:
        return sum(self._count(stream.text_between(start_s, end_s)) for stream in streams) / (end_s - start_s)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)


class _Background:
    """Agents that work inside the block, each asking anew when it has its answer."""

    def __init__(self, agents: int, work: Callable[[Completion], Awaitable[None]]) -> None:
        self.streams: list[Completion] = []
        self._agents = agents
        self._work = work
        self._answered = 0
        self._all_answered = anyio.Event()
        self._tasks = anyio.create_task_group()

    async def settled(self) -> None:
        """Return when there were as many answers as agents, or after a long wait: the crowd at the start is over."""
        with anyio.move_on_after(SETTLE_TIMEOUT_S):
            await self._all_answered.wait()

    async def _agent(self) -> None:
        while True:
            answer = Completion(time.perf_counter())
            self.streams.append(answer)
            await self._work(answer)
            self._answered += 1
            if self._answered == self._agents:
                self._all_answered.set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for _ in range(self._agents):
            self._tasks.start_soon(self._agent)
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(*failure)


def _ttfts_ms(answers: Sequence[Completion]) -> list[float]:
    return [ttft_s * 1000 for answer in answers if (ttft_s := answer.ttft_s) is not None]


COLUMNS = (
    "server",
    "TTFT idle",
    "TTFT busy: median",
    "p95",
    "worst",
    "busy : idle",
    "interactive tokens/s: idle",
    "busy",
    "background tokens/s: alone",
    "beside the person",
)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    return markdown(COLUMNS, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"`{row.server}`",
        f"{row.ttft_idle_ms:,.0f} ms",
        f"{row.ttft_busy_ms:,.0f} ms",
        f"{row.ttft_busy_p95_ms:,.0f} ms",
        f"{row.ttft_busy_worst_ms:,.0f} ms",
        f"{row.busy_to_idle:.2f}",
        f"{row.interactive_idle_tokens_per_s:.1f}",
        f"{row.interactive_busy_tokens_per_s:.1f}",
        f"{row.background_solo_tokens_per_s:.1f}",
        f"{row.background_busy_tokens_per_s:.1f} ({row.background_kept:.0%})",
    )


def bars(rows: Sequence[Row], load: Load) -> list[Bar]:
    """The promises of the two lanes, held against one run."""
    ours, others = rows[0], rows[1:]
    promised = load.weights[1] / sum(load.weights)
    found = [
        at_most("TTFT busy : idle", ours.busy_to_idle, 2.0),
        at_least("background tokens/s kept, at least the lane's share", ours.background_kept, promised),
    ]
    if others:
        ttft = min(row.ttft_busy_ms for row in others)
        speed = max(row.interactive_busy_tokens_per_s for row in others)
        found += [
            at_least("better peer's TTFT busy : ours", ttft / ours.ttft_busy_ms, 3.0),
            at_least("our interactive tokens/s busy : better peer's", ours.interactive_busy_tokens_per_s / speed, 2.0),
        ]
    return found
