"""What every engine does, and what it is given and gives back. No mlx here."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from typing import Any, Protocol, runtime_checkable

import msgspec

from lanes.wire import FinishReason, Sampling, SpecCounters


class SequenceSpec(msgspec.Struct, frozen=True):
    """One request as an engine sees it: token ids in, at most ``max_tokens`` token ids out.

    ``prompt`` holds at least one token id; ``max_tokens`` is at least 1 and together they fit the context.
    ``num_draft_tokens`` bounds a speculative round; 0 asks for plain decoding.

    ``emitted`` are the answer's first tokens, fewer than ``max_tokens``, where another engine has given them already:
    this one goes on behind them, and never emits them again.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    num_draft_tokens: int = 0
    emitted: tuple[int, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All that is known when the sequence starts: prompt and ``emitted``."""
        return self.prompt + self.emitted


class Emission(msgspec.Struct, frozen=True):
    """What one step brought for one sequence.

    ``token_ids`` may be empty (a prefill step that completes nothing emits nothing at all). The first ``accepted``
    of them were drafted. ``counters`` is what this step adds, None where the sequence does not speculate. The last
    emission of a sequence has ``finish`` or ``error`` set. An end-of-sequence token is emitted, with ``finish`` "stop".
    ``cached_tokens`` of the prompt were not computed, for they were in a prompt cache; that is said once.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    accepted: int = 0
    counters: SpecCounters | None = None
    finish: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0


class Handover(msgspec.Struct, frozen=True):
    """A sequence between two engines of one target, or two batches of one engine.

    ``token_ids`` are prompt and answer so far, ``cache`` the target's KV cache of all of them but the last, as mlx-lm
    makes it for a single sequence; an engine without a model has none.
    """

    spec: SequenceSpec
    token_ids: tuple[int, ...]
    cache: list[Any] | None = None

    @property
    def emitted(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - len(self.spec.prompt)


class Engine(Protocol):
    """A lane's engine for one model. Every method is called on the device thread.

    ``lanes.testing.check_engine`` holds implementations to this contract.
    """

    def add(self, spec: SequenceSpec) -> None:
        """Take a sequence. Raises ValueError if its id is in use."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a sequence: no emission names it from now on, and its memory is free after the next step at most."""
        ...

    def has_work(self) -> bool:
        """True if :meth:`step` would do something."""
        ...

    @property
    def runs_ahead(self) -> bool:
        """True if :meth:`step` may be called again before :meth:`finish`."""
        ...

    def step(self, limit_s: float | None = None) -> list[Emission]:
        """Start one bounded piece of work, without waiting for it; returns what is known meanwhile.

        With ``limit_s`` somebody waits for the device: the piece should hold it for no longer than that. Without, it is
        as large as is efficient.
        """
        ...

    def finish(self, since_s: float) -> list[Emission]:
        """Wait for the oldest piece that was started and not yet waited for; returns what it brought.

        Called once for each :meth:`step`, before the engine is idle or anything but :meth:`add` is called. What lies
        between ``since_s``, of ``time.perf_counter``, and the end of the wait is what the piece cost: engines learn
        from it.
        """
        ...

    def active(self) -> int:
        """Sequences that were added and have neither ended nor been cancelled."""
        ...

    @property
    def computed_tokens(self) -> int:
        """Tokens of prompts and answers computed so far: every step that gets anywhere makes it grow."""
        ...

    def close(self) -> None:
        """Drop all sequences and memory."""
        ...


@runtime_checkable
class Releasing(Protocol):
    """An engine whose sequences can go on elsewhere."""

    def release(self, request_id: str) -> Handover | None:
        """Let go of a sequence between two steps; None if it is not here, or has no token yet: then it stays.

        A sequence that came with ``emitted`` tokens has one when it has made one here.
        """
        ...


@runtime_checkable
class Adopting(Protocol):
    """An engine that goes on with another's sequences, as they would have gone on there."""

    def adopt(self, handover: Handover) -> None:
        """Take a sequence over. Raises ValueError if its id is in use."""
        ...


def advance(engine: Engine, limit_s: float | None = None) -> list[Emission]:
    """One step of an engine that has the device to itself, from its start to its end."""
    started_s = time.perf_counter()
    return engine.step(limit_s) + engine.finish(started_s)


def until_eos(token_ids: Tokens[int], eos: frozenset[int]) -> int:
    """How many of ``token_ids`` belong to the answer: up to and with the first end-of-sequence token."""
    for count, token in enumerate(token_ids, start=1):
        if token in eos:
            return count
    return len(token_ids)
