"""``bench identity``: is the greedy answer the same text, whichever way it was computed?

Every held-out prompt is answered by plain decoding, with speculation, by the throughput lane alone, and by the
throughput lane in a full batch. All but the last compute the same sums in nearly the same order; a batch pads and
groups them differently, so that two nearly equal logits may change places, and all that follows with them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import msgspec

from bench import servers
from bench.client import Completion, complete
from bench.reporting import add_save, machine, save
from lanes import embedded
from policies.load import DEFAULT_FILE

WAYS: Final[dict[str, tuple[dict[str, str], dict[str, Any]]]] = {
    "interactive, plain": ({"x-opta-lane": "interactive"}, {"num_draft_tokens": 0}),
    "interactive, speculative": ({"x-opta-lane": "interactive"}, {}),
    "throughput, alone": ({"x-opta-lane": "throughput"}, {}),
}
BATCH: Final = "throughput, batch of {}"


class Same(msgspec.Struct, frozen=True, kw_only=True):
    """One way against plain decoding: how many answers were the same, to the last character."""

    way: str
    same: int
    of: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--batch", type=int, default=8)
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if all but the batch answered the same."""
    found = measure(arguments.tokens, arguments.batch)
    print(f"{machine()}; {arguments.tokens} tokens each\n{report(found)}")
    save(arguments.save, {"tokens": arguments.tokens, "identity": found})
    return 0 if all(one.same == one.of for one in found[:-1]) else 1


def measure(max_tokens: int, batch: int) -> list[Same]:
    """Ask everything in every way; blocks until done."""
    return anyio.run(_measure, Path(DEFAULT_FILE), max_tokens, batch)


async def _measure(config: Path, max_tokens: int, batch: int) -> list[Same]:
    prompts = [prompt.prompt for prompt in embedded.held_out_prompts()]
    async with servers.running(servers.opta_router(config)) as client:
        texts: dict[str, list[str]] = {}
        for way, (headers, fields) in WAYS.items():
            texts[way] = [await _answer(client, prompt, max_tokens, headers, fields) for prompt in prompts]
        texts[BATCH.format(batch)] = await _in_batches(client, prompts, max_tokens, batch)
    plain, *others = texts
    return [
        Same(
            way=way,
            same=sum(one == other for one, other in zip(texts[plain], texts[way], strict=True)),
            of=len(prompts),
        )
        for way in others
    ]


async def _in_batches(client: httpx.AsyncClient, prompts: Sequence[str], max_tokens: int, batch: int) -> list[str]:
    texts = [""] * len(prompts)
    headers, fields = WAYS["throughput, alone"]
    slots = anyio.CapacityLimiter(batch)

    async def ask(number: int) -> None:
        async with slots:
            texts[number] = await _answer(client, prompts[number], max_tokens, headers, fields)

    async with anyio.create_task_group() as tg:
        for number in range(len(prompts)):
            tg.start_soon(ask, number)
    return texts


async def _answer(
    client: httpx.AsyncClient, prompt: str, max_tokens: int, headers: dict[str, str], fields: dict[str, Any]
) -> str:
    answer = Completion(time.perf_counter())
    body = {"model": "opta-tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}
    await complete(client, body, headers, answer)
    return answer.text


def report(found: Sequence[Same]) -> str:
    """Lines to print."""
    return "\n".join(f"{one.way:28} {one.same} of {one.of} answers the same as plain decoding" for one in found)
