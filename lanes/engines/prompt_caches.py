"""KV caches of prompts and answers that were computed, kept for whoever comes with the same beginning. No mlx here.

A chat's next turn begins with the turns before it, an agent's next call with the same instructions: what they have in
common is computed once. mlx-lm 0.31.3's ``LRUPromptCache`` evicts in order of arrival, not of use, and searches in time
quadratic in the length of what it finds; vllm-mlx 0.6.0's ``MemoryAwarePrefixCache`` copies whatever it stores at the
end of an answer; neither knows of a draft that is behind its target.

Sequences stand in lexicographic order, so the one that has most in common with a prompt is a neighbour of the place
where the prompt would stand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice, takewhile
from typing import Any, Final, NamedTuple, Protocol

from lanes.wire import PromptCacheStats

LEAST_TOKENS: Final = 32
"""Of a prefix worth keeping: shorter ones take about as long to compute as one token of an answer."""

COMPARED_TOKENS: Final = 512
"""At a time: slices of tuples are compared much faster than their elements one by one."""

TokenIds = tuple[int, ...]


class Layers(Protocol):
    """The KV caches of one model's layers, behind ``tokens`` tokens; never changed."""

    @property
    def tokens(self) -> int:
        """How many tokens they hold."""
        ...

    @property
    def size_bytes(self) -> int:
        """What they take on the device."""
        ...

    @property
    def trimmable(self) -> bool:
        """True if :meth:`prefix` can give less than everything."""
        ...

    def prefix(self, tokens: int) -> list[Any]:
        """mlx-lm's caches of the first ``tokens``, for one sequence to go on with: what it does shows nowhere else."""
        ...


class Known(NamedTuple):
    """What need not be computed of a prompt: its first ``tokens`` by the target, ``draft_tokens`` by the draft.

    ``draft_tokens`` is no larger, and 0 with an empty ``draft``.
    """

    tokens: int
    target: list[Any]
    draft_tokens: int
    draft: list[Any]


class _Entry:
    def __init__(self, token_ids: TokenIds, target: Layers, draft: Layers | None, used: int) -> None:
        self.token_ids = token_ids
        self.target = target
        self.draft = draft
        self.used = used

    @property
    def size_bytes(self) -> int:
        return self.target.size_bytes + (self.draft.size_bytes if self.draft is not None else 0)

    def usable(self, token_ids: TokenIds) -> int:
        """How many of ``token_ids`` it can stand for."""
        common = _common(self.token_ids, token_ids)
        return common if self.target.trimmable or common == len(self.token_ids) else 0

    def known(self, tokens: int) -> Known:
        target = self.target.prefix(tokens)
        if self.draft is None or not (self.draft.trimmable or self.draft.tokens <= tokens):
            return Known(tokens, target, 0, [])
        draft_tokens = min(self.draft.tokens, tokens)
        return Known(tokens, target, draft_tokens, self.draft.prefix(draft_tokens))


class PromptMemory:
    """All prompt caches of one device, under one bound; those that were not used for longest go first.

    Args:
        max_bytes: the bound; 0: nothing is kept.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._of: dict[str, PromptCaches] = {}
        self._uses = 0

    def of(self, model: str) -> PromptCaches:
        """Those of one model. Its counters outlive its weights."""
        return self._of.setdefault(model, PromptCaches(self))

    @property
    def size_bytes(self) -> int:
        """What all of them take."""
        return sum(caches.size_bytes for caches in self._of.values())

    def resize(self, max_bytes: int) -> int:
        """Set the bound; returns the bytes that were given back for it."""
        self.max_bytes = max_bytes
        before_bytes = self.size_bytes
        self.shrink()
        return before_bytes - self.size_bytes

    def shrink(self) -> None:
        """Bring what is kept within the bound."""
        while self.size_bytes > self.max_bytes:
            min(self._of.values(), key=lambda caches: caches.oldest_use).evict()

    def use(self) -> int:
        """The number of this use: larger is later."""
        self._uses += 1
        return self._uses

    def stats(self) -> dict[str, PromptCacheStats]:
        """By model."""
        return {model: caches.stats() for model, caches in self._of.items()}


class PromptCaches:
    """Those of one model, target and draft together. What is kept must not be changed by whoever made it.

    Args:
        memory: the bound that it shares; None: nothing is kept.
    """

    def __init__(self, memory: PromptMemory | None = None) -> None:
        self._memory = memory if memory is not None else PromptMemory()
        self._entries: list[_Entry] = []
        self.size_bytes = 0
        self._hits = self._misses = self._evictions = self._reused_tokens = 0

    @property
    def enabled(self) -> bool:
        """False if it is in vain to :meth:`keep` anything."""
        return self._memory.max_bytes > 0

    def find(self, token_ids: TokenIds) -> Known | None:
        """What is known of all but the last of ``token_ids``: that one must be computed for what follows it."""
        wanted = token_ids[:-1]
        if len(wanted) < LEAST_TOKENS or not self.enabled:
            return None
        at = self._after(wanted)
        near = [*self._entries[max(at - 1, 0) : at + 1], *islice(self._beginning(wanted), 1)]
        best = max(near, key=lambda entry: entry.usable(wanted), default=None)
        tokens = best.usable(wanted) if best is not None else 0
        if best is None or tokens < LEAST_TOKENS:
            self._misses += 1
            return None
        self._hits += 1
        self._reused_tokens += tokens
        best.used = self._memory.use()
        return best.known(tokens)

    def keep(self, token_ids: TokenIds, target: Layers, draft: Layers | None = None) -> bool:
        """Keep the caches of ``token_ids``; those of ``draft`` may be of fewer of them. True if ``target`` is kept."""
        if len(token_ids) < LEAST_TOKENS or not self.enabled:
            return False
        longer = self._containing(token_ids)
        if longer is not None:
            token_ids, target = longer.token_ids, longer.target
        replaced = [longer] if longer is not None else list(self._beginning(token_ids)) if target.trimmable else []
        drafts = [draft, *(entry.draft for entry in replaced)]  # one of them may be ahead of the newest
        draft = max(drafts, key=lambda layers: layers.tokens if layers is not None else 0)
        entry = _Entry(token_ids, target, draft, self._memory.use())
        if entry.size_bytes > self._memory.max_bytes:
            return False
        for other in replaced:
            self._remove(other)
        self._entries.insert(self._after(token_ids), entry)
        self.size_bytes += entry.size_bytes
        self._memory.shrink()
        return longer is None

    def clear(self) -> None:
        """Give everything back."""
        self._entries.clear()
        self.size_bytes = 0

    @property
    def oldest_use(self) -> float:
        """When what :meth:`evict` would take was used; infinity if there is nothing."""
        return min((entry.used for entry in self._entries), default=float("inf"))

    def evict(self) -> None:
        """Give back what was not used for longest; there must be something."""
        self._remove(min(self._entries, key=lambda entry: entry.used))
        self._evictions += 1

    def stats(self) -> PromptCacheStats:
        """Counters from the beginning, and what is kept now."""
        return PromptCacheStats(
            entries=len(self._entries),
            size_bytes=self.size_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            reused_tokens=self._reused_tokens,
        )

    def _after(self, token_ids: TokenIds) -> int:
        """The index behind everything that is no larger than ``token_ids``."""
        return bisect_right(self._entries, token_ids, key=_token_ids)

    def _beginning(self, token_ids: TokenIds) -> Iterator[_Entry]:
        """The entries that ``token_ids`` begins with, longest first.

        They stand before it, but not always next to it: they are no longer than what an entry between has in common.
        """
        while at := self._after(token_ids):
            entry = self._entries[at - 1]
            common = _common(entry.token_ids, token_ids)
            if common == len(entry.token_ids):
                yield entry
                common -= 1
            token_ids = token_ids[:common]

    def _containing(self, token_ids: TokenIds) -> _Entry | None:
        """An entry that can stand for all of ``token_ids``, if there is one."""
        at = self._after(token_ids)
        near = self._entries[max(at - 1, 0) : at + 1]
        return next((entry for entry in near if entry.usable(token_ids) == len(token_ids)), None)

    def _remove(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self.size_bytes -= entry.size_bytes


def _token_ids(entry: _Entry) -> TokenIds:
    return entry.token_ids


def _common(one: TokenIds, other: TokenIds) -> int:
    """How many tokens both begin with."""
    at = 0
    length = min(len(one), len(other))
    while at < length and one[at : at + COMPARED_TOKENS] == other[at : at + COMPARED_TOKENS]:
        at += COMPARED_TOKENS
    pairs = zip(one[at : at + COMPARED_TOKENS], other[at : at + COMPARED_TOKENS], strict=False)
    return min(at, length) + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
