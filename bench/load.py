"""The load that benchmarks put on a server: a person who reads between questions, and agents that never pause.

Every prompt begins with a line of its own, so that nobody's prefix cache helps. Agents begin with answers of random
lengths, so that they do not fall in step.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self

import anyio
import httpx
import msgspec
from tokenizers import Tokenizer

from bench.client import Completion, complete
from lanes import embedded

SETTLE_S: Final = 60.0
RECONNECTS: Final = 4
RECONNECT_AFTER_S: Final = 0.5


def tokenizer() -> Tokenizer:
    """The embedded pair's."""
    return Tokenizer.from_file(str(embedded.path("target") / "tokenizer.json"))


def prompts(tokens: tuple[int, int], seed: str) -> Iterator[str]:
    """Held-out code for ever, each prompt of ``low`` to ``high`` of the embedded pair's tokens, uniformly."""
    rng, encoding = random.Random(f"{seed} {tokens}"), tokenizer()
    code = [encoding.encode(prompt.prompt).ids for prompt in embedded.held_out_prompts()]
    while True:
        wanted, ids = rng.randint(*tokens), list[int]()
        while len(ids) < wanted:
            ids = rng.choice(code) + ids
        yield f"# {rng.randrange(10**9):09d}\n{encoding.decode(ids[-wanted:])}"


def again_and_again(prompts: Iterator[str], count: int) -> tuple[Iterator[str], Iterator[int]]:
    """The first ``count`` of ``prompts`` for ever, and a seed for each: where they are asked, the answers are known."""
    return itertools.cycle(list(itertools.islice(prompts, count))), itertools.cycle(range(count))


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever asks one server: with which headers, and for what kind of answers. Without ``seeds`` they differ."""

    client: httpx.AsyncClient
    model: str
    prompts: Iterator[str]
    seeds: Iterator[int] | None = None
    max_tokens: int
    temperature: float
    headers: Mapping[str, str] = {}

    async def ask(self, into: Completion, max_tokens: int | None = None) -> None:
        """One answer, to the next prompt.

        A connection that breaks before the first token is tried again, as the official clients do: ``mlx_lm.server``
        listens with a backlog of five, and resets what comes when 32 streams begin at once.

        Raises:
            httpx.HTTPError, AnswerFailedError: see :func:`bench.client.complete`.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": next(self.prompts),
            "max_tokens": max_tokens or self.max_tokens,
            "temperature": self.temperature,
            "top_p": 1.0,  # the servers' defaults differ
            "stream_options": {"include_usage": True},
            **({"seed": next(self.seeds)} if self.seeds is not None else {}),
        }
        for reconnects in range(RECONNECTS + 1):
            try:
                await complete(self.client, body, self.headers, into)
            except httpx.TransportError as exc:
                if into.pieces or reconnects == RECONNECTS:
                    raise
                print(f"{self.client.base_url}: {exc!r}, asked again", file=sys.stderr)
                await anyio.sleep(RECONNECT_AFTER_S)
            else:
                return


class Person:
    """Asks, reads for a random time so as not to fall in step with the server, and asks again."""

    def __init__(self, caller: Caller, *, think_s: float, seed: int) -> None:
        self._caller = caller
        self._think_s = think_s
        self._pauses = random.Random(seed)

    async def asks(self, questions: int) -> list[Completion]:
        """That many, one after the other."""
        return [await self._one() for _ in range(questions)]

    async def asks_for(self, seconds: float, patience_s: float) -> list[Completion]:
        """For that long, and ``patience_s`` longer for the last answer; what has not come by then is given up."""
        answers: list[Completion] = []
        until_s = time.perf_counter() + seconds
        with anyio.move_on_after(seconds + patience_s):
            while time.perf_counter() < until_s:
                answers.append(Completion(time.perf_counter()))
                await self._asked(answers[-1])
        return answers

    async def _one(self) -> Completion:
        answer = Completion(time.perf_counter())
        await self._asked(answer)
        return answer

    async def _asked(self, answer: Completion) -> None:
        await self._caller.ask(answer)
        if not answer.pieces:
            raise RuntimeError(f"{self._caller.model} answered with nothing")
        await anyio.sleep(self._pauses.expovariate(1 / self._think_s))


class Agents:
    """Callers that work inside the block, each asking anew when it has its answer."""

    def __init__(self, caller: Caller, count: int, seed: int = 1) -> None:
        self.streams: list[Completion] = []
        self._caller = caller
        lengths = random.Random(seed)
        self._first_tokens = [lengths.randint(1, caller.max_tokens) for _ in range(count)]
        self._waited_for = count
        self._ends = False
        self._all_answered = anyio.Event()
        self._tasks = anyio.create_task_group()

    async def settled(self, timeout_s: float = SETTLE_S) -> None:
        """Return when each has been answered once, or after a long wait: the crowd at the start is over."""
        with anyio.move_on_after(timeout_s):
            await self._all_answered.wait()

    async def _agent(self, first_tokens: int) -> None:
        await self._ask(first_tokens)
        self._waited_for -= 1
        if not self._waited_for:
            self._all_answered.set()
        while not self._ends:
            await self._ask()

    def finish(self) -> None:
        """Let each end with the answer that it waits for: the block ends with the last one, and the server is idle."""
        self._ends = True

    async def _ask(self, max_tokens: int | None = None) -> None:
        answer = Completion(time.perf_counter())
        self.streams.append(answer)
        await self._caller.ask(answer, max_tokens)

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for first_tokens in self._first_tokens:
            self._tasks.start_soon(self._agent, first_tokens)
        return self

    async def __aexit__(self, *failure: Any) -> None:
        if not self._ends or any(failure):
            self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(*failure)


Count = Callable[[Sequence[Completion], float, float], float]
"""Tokens that arrived in these answers between two times."""


def encoded_tokens() -> Count:
    """Counts by encoding the text with the embedded pair's tokenizer, for every server alike."""
    encoding = tokenizer()

    def count(answers: Sequence[Completion], start_s: float, end_s: float) -> float:
        texts = (answer.text_between(start_s, end_s) for answer in answers)
        return sum(len(encoding.encode(text).ids) for text in texts if text)

    return count


def reported_tokens(answers: Sequence[Completion], start_s: float, end_s: float) -> float:
    """Counts by the server's own usage, for a model whose tokens are not known here.

    A usage says how many tokens an answer had, not when: they are spread over its characters. An answer without one,
    as it was cut off, is taken to have as many tokens a character as the others.
    """
    whole = [answer for answer in answers if answer.tokens and answer.text]
    characters = sum(len(answer.text) for answer in whole)
    usual = sum(answer.tokens or 0 for answer in whole) / characters if characters else 0.0
    return sum(
        len(answer.text_between(start_s, end_s)) * (answer.tokens / len(answer.text) if answer.tokens else usual)
        for answer in answers
        if answer.pieces
    )


async def tokens_per_s(agents: Agents, seconds: float, count: Count) -> float:
    """What the agents receive from now on, for so many seconds."""
    started_s = time.perf_counter()
    await anyio.sleep(seconds)
    ended_s = time.perf_counter()
    return count(agents.streams, started_s, ended_s) / (ended_s - started_s)


def ttfts_ms(answers: Sequence[Completion], now_s: float = 0.0) -> list[float]:
    """Times to first token; of a question that was given up at ``now_s``, the time it had waited: a lower bound."""
    return [1000 * (now_s - answer.asked_s if answer.ttft_s is None else answer.ttft_s) for answer in answers]


def seen_tokens_per_s(answers: Sequence[Completion], count: Count, now_s: float = 0.0) -> float:
    """Tokens of all answers over the time spent waiting for them, up to ``now_s`` for those given up."""
    waited_s = sum((answer.ended_s or now_s) - answer.asked_s for answer in answers)
    return count(answers, 0.0, math.inf) / waited_s
