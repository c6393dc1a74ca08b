"""Which of several models behind one alias answers a request. Pure.

The one with the least outstanding work, among those that are resident; but a conversation stays with the model that has
its prefix in a cache, unless that one already has more than its part: "Consistent Hashing with Bounded Loads" (V.
Mirrokni, M. Thorup, M. Zadimoghaddam, SODA 2018) with a table of prefixes in place of the hash. So prompt caches hit,
and no model becomes a hot spot: who is given a request had at most :data:`LOAD_FACTOR` times the mean of all before it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import Final

from lanes import wire

LOAD_FACTOR: Final = 1.25
"""1 + epsilon of the source: smaller spreads better, larger keeps more conversations where they were."""

MAX_PREFIXES: Final = 16_384
BLOCK_CHARS: Final = 1_000
BLOCK_TOKENS: Final = 256
MAX_PREFIXES_OF_PROMPT: Final = 128
"""The longest ones: a prompt of megabytes must not push everybody else's out."""

DIGEST_BYTES: Final = 16


class Placement:
    """Outstanding work of each model, and which conversation is where. Work is in estimated tokens."""

    def __init__(self) -> None:
        self._outstanding: dict[str, int] = {}
        self._placed: Counter[str] = Counter()
        self._models: OrderedDict[bytes, str] = OrderedDict()

    def choose(self, candidates: Sequence[str], prompt: wire.Prompt, work: int) -> str:
        """One of ``candidates``, of which there is at least one; it is remembered for this conversation."""
        if len(candidates) == 1:
            return candidates[0]
        prefixes = deque(_prefixes(prompt), MAX_PREFIXES_OF_PROMPT)
        bound = LOAD_FACTOR * (sum(map(self.outstanding, candidates)) + work) / len(candidates)
        model = next((self._models[prefix] for prefix in reversed(prefixes) if prefix in self._models), "")
        if model not in candidates or self.outstanding(model) > bound:
            model = min(candidates, key=lambda name: (self.outstanding(name), self._placed[name]))
            self._placed[model] += 1
        for prefix in prefixes:
            self._models[prefix] = model
            self._models.move_to_end(prefix)
        while len(self._models) > MAX_PREFIXES:
            self._models.popitem(last=False)
        return model

    def begin(self, model: str, work: int) -> None:
        """A request is on its way to ``model``: queued there, or running."""
        self._outstanding[model] = self.outstanding(model) + work

    def end(self, model: str, work: int) -> None:
        """It is over."""
        self._outstanding[model] -= work

    def outstanding(self, model: str) -> int:
        """Work that was begun and has not ended."""
        return self._outstanding.get(model, 0)


def _prefixes(prompt: wire.Prompt) -> Iterator[bytes]:
    """A digest of each prefix that a next turn would repeat, shortest first.

    A system message alone is none: it is the same for many conversations, and would keep them all in one place.
    """
    digest = b""
    for part, counts in _parts(prompt):
        digest = hashlib.blake2b(digest + part, digest_size=DIGEST_BYTES).digest()
        if counts:
            yield digest


def _parts(prompt: wire.Prompt) -> Iterator[tuple[bytes, bool]]:
    match prompt:
        case wire.ChatPrompt(messages):
            said = False
            for message in messages:
                said = said or message.role != "system"
                yield f"{message.role}\0{message.content}".encode(), said
        case wire.TextPrompt(text):
            for start in range(0, len(text), BLOCK_CHARS):
                yield text[start : start + BLOCK_CHARS].encode(), True
        case wire.TokenPrompt(token_ids):
            for start in range(0, len(token_ids), BLOCK_TOKENS):
                yield repr(token_ids[start : start + BLOCK_TOKENS]).encode(), True
