"""``bench turns``: the second turn of a long conversation, beside the first.

A conversation of about two thousand tokens is new to the router, and computed; its second turn begins with the first
turn and its answer, and asks something new and short. Times to the first token are of one client that is alone, over
HTTP, in each lane. The same conversations on a router that keeps no prompt caches say whether the answers are the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import msgspec

from bench import servers
from bench.client import Completion, complete
from bench.reporting import Bar, add_save, at_least, at_most, machine, markdown, print_bars, save
from bench.statistics import median
from lanes import embedded

LANES: Final = ("interactive", "throughput")
CONVERSATION_CHARS: Final = 7_000
"""About two thousand tokens."""
QUESTION_CHARS: Final = 200
"""About sixty tokens."""

SECOND_TO_FIRST: Final = 0.2
KNOWN: Final = 0.95
"""Of the first turn and its answer: where two texts meet, a tokenizer may see other tokens than an engine made."""

CONFIG: Final = """
models:
  - {name: opta-tiny, target: "embedded:target", draft: "embedded:draft", keep_alive: -1, preload: true}
"""
COLD: Final = "memory: {prompt_caches: null}\n"
NO_END: Final = {"0": -100, "4": -100}
"""Keeps the embedded target, whose end tokens these are, from ending an answer early."""


class Turn(msgspec.Struct, frozen=True):
    """One turn: seconds to its first token, tokens of its prompt and how many of those were known, and the answer."""

    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    text: str


class Conversation(msgspec.Struct, frozen=True):
    """Both turns, in one lane."""

    lane: str
    first: Turn
    second: Turn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--conversations", type=int, default=3, help="in each lane")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    kept, computed = anyio.run(_measure, arguments.conversations, arguments.tokens)
    promises = bars(kept, computed)
    rows = {lane: figures([one for one in kept if one.lane == lane]) for lane in LANES}
    cold = {lane: figures([one for one in computed if one.lane == lane]) for lane in LANES}
    print(f"{arguments.conversations} conversations in each lane; {machine()}\n\n{table(rows, cold)}\n")
    settings = {"conversations": arguments.conversations, "answer_tokens": arguments.tokens}
    save(arguments.save, {**settings, "with_prompt_caches": rows, "without": cold, "bars": promises})
    return print_bars(promises)


async def _measure(conversations: int, tokens: int) -> tuple[list[Conversation], list[Conversation]]:
    """The same conversations, with prompt caches and without."""
    found = []
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        config = Path(scratch) / "opta.yaml"
        for text in (CONFIG, CONFIG + COLD):
            config.write_text(text, "utf-8")
            async with servers.running(servers.opta_router(config)) as client:
                numbered = [(lane, number) for number in range(conversations) for lane in LANES]
                found.append([await _conversation(client, lane, number, tokens) for lane, number in numbered])
    kept, computed = found
    return kept, computed


async def _conversation(client: httpx.AsyncClient, lane: str, number: int, tokens: int) -> Conversation:
    prompt, more = said(lane, number)
    first = await _turn(client, lane, prompt, tokens)
    return Conversation(lane, first, await _turn(client, lane, prompt + first.text + more, tokens))


async def _turn(client: httpx.AsyncClient, lane: str, prompt: str, tokens: int) -> Turn:
    body: dict[str, Any] = {"model": "opta-tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    body |= {"logit_bias": NO_END, "stream_options": {"include_usage": True}}
    answer = Completion(time.perf_counter())
    await complete(client, body, {"x-opta-lane": lane}, answer)
    return Turn(answer.ttft_s or 0.0, answer.prompt_tokens, answer.cached_tokens, answer.text)


def said(lane: str, number: int) -> tuple[str, str]:
    """What is said in the first turn and in the second; no two conversations begin alike."""
    texts = [held.prompt for held in embedded.held_out_prompts()]
    parts = _until(CONVERSATION_CHARS, islice(cycle(texts), number, None))
    return f"# {number} {lane}\n" + "\n\n".join(parts), "\n\n\n# and then\n" + texts[number + 1][:QUESTION_CHARS]


def _until(chars: int, texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield text
        chars -= len(text)
        if chars <= 0:
            return


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One lane: medians of seconds to the first token and of their ratio, the worst of that, and tokens."""

    first_ttft_s: float
    second_ttft_s: float
    second_to_first: float
    second_to_first_worst: float
    first_prompt_tokens: int
    second_prompt_tokens: int
    second_cached_tokens: int


def figures(conversations: Sequence[Conversation]) -> Figures:
    """Those of one lane."""
    ratios = [one.second.ttft_s / one.first.ttft_s for one in conversations]
    return Figures(
        first_ttft_s=round(median([one.first.ttft_s for one in conversations]), 4),
        second_ttft_s=round(median([one.second.ttft_s for one in conversations]), 4),
        second_to_first=round(median(ratios), 4),
        second_to_first_worst=round(max(ratios), 4),
        first_prompt_tokens=min(one.first.prompt_tokens for one in conversations),
        second_prompt_tokens=min(one.second.prompt_tokens for one in conversations),
        second_cached_tokens=min(one.second.cached_tokens for one in conversations),
    )


def bars(kept: Sequence[Conversation], computed: Sequence[Conversation]) -> list[Bar]:
    """The second turn is quick, for it is known; its answer is the one that it would be otherwise."""
    promises = []
    for lane in LANES:
        conversations = [one for one in kept if one.lane == lane]
        ratio = figures(conversations).second_to_first
        promises.append(at_most(f"{lane}: second time to first token over the first", ratio, SECOND_TO_FIRST))
        known = min(one.second.cached_tokens / one.first.prompt_tokens for one in conversations)
        promises.append(at_least(f"{lane}: known tokens of a second turn, over all of the first", known, KNOWN))
    pairs = zip(kept, computed, strict=True)
    different = sum((a.first.text, a.second.text) != (b.first.text, b.second.text) for a, b in pairs)
    promises.append(at_most("conversations that go otherwise without prompt caches", different, 0))
    return promises


def table(kept: dict[str, Figures], computed: dict[str, Figures]) -> str:
    """A row for each lane, with prompt caches and without."""
    rows = [
        [
            f"{lane}, {how}",
            f"{one.first_ttft_s * 1e3:.0f}",
            f"{one.second_ttft_s * 1e3:.0f}",
            f"{one.second_to_first:.3f}",
            f"{one.second_to_first_worst:.3f}",
            f"{one.second_cached_tokens} of {one.second_prompt_tokens}",
        ]
        for how, lanes in (("prompt caches", kept), ("none", computed))
        for lane, one in lanes.items()
    ]
    columns = ["lane", "first turn, ms to first token", "second turn", "ratio", "worst", "tokens known"]
    return markdown(columns, rows)
