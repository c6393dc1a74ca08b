"""The throughput lane's engine: continuous batching over one target, in pieces of bounded length.

A piece is a chunk of one prompt's prefill, or one step of one batch (:class:`lanes.engines.batch.Batch`), which decodes
or copies the batch's cache. While nobody waits a prompt is computed by itself, in large chunks. While somebody does,
chunks are small, and are computed in the decode steps where the model can (:mod:`lanes.engines.hybrid`). Either way a
prompt has a KV cache of its own, and joins a batch with it.

There may be several batches. A batch is padded to its longest sequence, so sequences of like length go together, and
takes nobody in where its step would get long: for somebody who was there lately, or at all. One that is too large for
whoever comes is cut, a sequence at a time. Where reading the weights costs more than the caches, as on a GPU, one batch
is the cheapest, and there is only one.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import deque
from typing import Any, Final

import mlx.core as mx
import msgspec
from mlx_lm.models.cache import KVCache, make_prompt_cache, trim_prompt_cache

from lanes.engines import cpu_rope, hybrid
from lanes.engines.base import Emission, Handover, SequenceSpec
from lanes.engines.batch import Batch
from lanes.engines.hybrid import Chunk
from lanes.engines.kv_layers import KVLayers, compute
from lanes.engines.prompt_caches import PromptCaches
from lanes.engines.step_costs import AIM, StepCosts, chunk_size
from lanes.fair_share import FairShare

log = logging.getLogger(__name__)

UNDISTURBED_STEP_S: Final = 0.25
"""How long a step may take while nobody waits: whoever comes next waits for its end."""

RETURNS_S: Final = 60.0
"""Whoever was there so lately is taken to come back: until then no batch gets so large that it would have to be cut."""

SHARES: Final = {"prefill": 3.0, "decode": 1.0}
"""Of the lane's time, while prompts wait and batches run: the sooner a prompt joins, the fuller the batches."""


class ThroughputEngine:
    """Continuous batching over one target.

    Args:
        target: an mlx-lm model; shared with other engines, never changed.
        eos: token ids that end an answer.
        max_active: sequences decoded at a time; more wait their turn in order of arrival.
        max_step_s: how long a decode step should be at most for those who were there lately (:data:`RETURNS_S`).
        prompt_caches: where prompts begin, and sequences leave what they computed; None: nowhere.
        pads_chunks: make the last chunk of a prompt as long as others are. On CUDA each new shape costs: a plan of 50
            to 80 ms if the chunk is a long one (:mod:`lanes.engines.cuda_attention`). None: there, and nowhere else.
    """

    runs_ahead = True

    def __init__(
        self,
        target: Any,
        eos: frozenset[int],
        max_active: int,
        max_step_s: float | None = None,
        prompt_caches: PromptCaches | None = None,
        *,
        pads_chunks: bool | None = None,
    ) -> None:
        self._target = target
        self._pads_chunks = mx.cuda.is_available() if pads_chunks is None else pads_chunks
        self._eos = eos
        self._max_active = max_active
        self._max_step_s = UNDISTURBED_STEP_S if max_step_s is None else max_step_s
        self._disturbed_s = -math.inf
        self._prompt_caches = prompt_caches if prompt_caches is not None else PromptCaches()
        self._prompts: deque[_Prompt] = deque()
        self._batches: list[Batch] = []
        self._turns: deque[Batch] = deque()
        self._share: FairShare[str] = FairShare(SHARES)
        self._costs = StepCosts()
        self._bound_said = False
        self._under_way: deque[_Piece] = deque()
        self.computed_tokens = 0

    def add(self, spec: SequenceSpec) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self.adopt(Handover(spec, spec.token_ids))

    def adopt(self, handover: Handover) -> None:
        """See :class:`lanes.engines.base.Adopting`. A cache is used as it stands: only the last token is computed."""
        request_id = handover.spec.request_id
        if self._prompt(request_id) is not None or self._batch(request_id) is not None:
            raise ValueError(f"request id {request_id!r} is in use")
        prompt = _Prompt(handover, self._target)
        if prompt.computed and self._decoding() < self._max_active:
            self._join(prompt)
        else:
            self._prompts.append(prompt)

    def cancel(self, request_id: str) -> None:
        """See :class:`lanes.engines.base.Engine`. A batch lets go of the sequence as its next step begins."""
        prompt, batch = self._prompt(request_id), self._batch(request_id)
        if prompt is not None:
            self._prompts.remove(prompt)
            prompt.leave(self._prompt_caches)
        if batch is not None:
            batch.cancel(request_id)

    def has_work(self) -> bool:
        """See :class:`lanes.engines.base.Engine`."""
        return bool(self._prompts) or any(batch.has_work() for batch in self._batches)

    def active(self) -> int:
        """See :class:`lanes.engines.base.Engine`."""
        return len(self._prompts) + self._decoding()

    def step(self, limit_s: float | None = None) -> list[Emission]:
        """A chunk of the oldest prompt, or a step of the batch whose turn it is."""
        if limit_s is not None:
            self._max_step_s, self._disturbed_s = limit_s, time.perf_counter()
        kinds = ["decode"] if any(batch.has_work() for batch in self._batches) else []
        if self._prompts and self._decoding() < self._max_active:
            kinds.append("prefill")
        piece = _Piece()
        self._under_way.append(piece)
        if limit_s is not None and "decode" in kinds:
            if self._cut(piece, limit_s):
                return []
            if "prefill" in kinds and self._carries_oldest(limit_s):
                if self._next_batch().carries:
                    return self._both(piece, limit_s)
                kinds = ["decode"]  # until it does
        match self._share.select(kinds):
            case "prefill":
                return self._prefill(piece, UNDISTURBED_STEP_S if limit_s is None else AIM * limit_s)
            case "decode":
                return self._decode(piece, limit_s)
            case _:
                return []

    def finish(self, since_s: float) -> list[Emission]:
        """See :class:`lanes.engines.base.Engine`."""
        piece = self._under_way.popleft()
        if not self.has_work():
            cpu_rope.forget()
        try:
            mx.eval(piece.arrays)
        except Exception as exc:
            if piece.prompt is None or piece.decodes:
                raise
            return [self._failed(piece.prompt, exc)]
        elapsed_s = time.perf_counter() - since_s
        self.computed_tokens += piece.tokens
        match piece.prompt is not None, piece.decodes:
            case True, True:  # to neither's debit
                for kind, share in SHARES.items():
                    self._share.charge(kind, elapsed_s * share / sum(SHARES.values()))
                if piece.cache_tokens:
                    self._costs.carried(piece.cache_tokens, piece.tokens, piece.attended, elapsed_s)
            case True, False:
                self._share.charge("prefill", elapsed_s)
                self._costs.prefilled(piece.tokens, piece.attended, elapsed_s)
            case False, True:
                self._share.charge("decode", elapsed_s)
                if piece.cache_tokens:
                    self._costs.decoded(piece.cache_tokens, elapsed_s)
        return []

    def close(self) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        for batch in self._batches:
            batch.close()
        self._batches.clear()
        self._turns.clear()
        self._prompts.clear()
        self._under_way.clear()
        self._prompt_caches.clear()
        cpu_rope.forget()

    def _prefill(self, piece: _Piece, limit_s: float) -> list[Emission]:
        prompt = self._prompts[0]
        emissions = prompt.resume(self._prompt_caches)
        tokens = min(self._costs.chunk_tokens(prompt.offset, limit_s), prompt.remaining)
        try:
            if tokens:
                piece.arrays = prompt.compute(tokens, self._chunk_size(tokens))
                piece.prompt, piece.tokens, piece.attended = prompt, tokens, prompt.offset
            if prompt.computed:
                self._join(prompt)
                self._prompts.popleft()
        except Exception as exc:  # its cache is its own: the other sequences go on
            return [self._failed(prompt, exc)]
        return emissions

    def _chunk_size(self, tokens: int) -> int:
        return chunk_size(tokens) if self._pads_chunks else tokens

    @functools.cached_property
    def carries(self) -> bool:
        """Whether the model can compute a chunk in a decode step; it is tried on a few tokens, once. Never on CUDA.

        There a step is mostly the handing over of its operations, of which such a step has more: on an H200, 3 B bf16,
        32 sequences, the lane lost a fifth of its tokens.
        """
        return not mx.cuda.is_available() and hybrid.works(self._target)

    def _carries_oldest(self, limit_s: float) -> bool:
        """Whether the oldest prompt is best computed in the steps of the batch whose turn it is."""
        prompt, batch = self._prompts[0], self._next_batch()
        if not (prompt.remaining and len(batch) and self.carries):
            return False
        return self._costs.carried_tokens(len(batch), batch.longest, prompt.offset, limit_s) > 0

    def _both(self, piece: _Piece, limit_s: float) -> list[Emission]:
        """A step of the batch whose turn it is, with a chunk of the oldest prompt in it."""
        prompt, batch = self._prompts[0], self._next_batch()
        emissions = prompt.resume(self._prompt_caches)
        wanted = self._costs.carried_tokens(len(batch), batch.longest, prompt.offset, limit_s)
        tokens = min(wanted, prompt.remaining)
        chunk = prompt.chunk(tokens, self._chunk_size(tokens)) if tokens else None  # all of it may be known
        emissions += self._decode(piece, limit_s, chunk)
        if chunk is not None and chunk.error is not None:
            return [*emissions, self._failed(prompt, chunk.error)]
        if chunk is not None and chunk.computed:
            prompt.computed_chunk(chunk, tokens)
            piece.arrays += chunk.under_way
            piece.prompt, piece.tokens, piece.attended = prompt, tokens, prompt.offset
        if prompt.computed:
            self._join(prompt)
            self._prompts.popleft()
        return emissions

    def _failed(self, prompt: _Prompt, exc: Exception) -> Emission:
        request_id = prompt.handover.spec.request_id
        log.error("prefill of request %s failed", request_id, exc_info=exc)
        self.cancel(request_id)
        self._prompt_caches.clear()  # what it began with may be at fault, and what it left is
        return Emission(request_id, error=f"{type(exc).__name__}: {exc}")

    def _join(self, prompt: _Prompt) -> None:
        ready = prompt.ready()
        prompt.leave(self._prompt_caches)  # a batch copies what joins it
        self._place(ready)

    def _place(self, ready: Handover, besides: Batch | None = None) -> None:
        """Let a sequence join a batch, not the one ``besides``."""
        batches = [batch for batch in self._batches if batch is not besides]
        shapes = [(len(batch), batch.longest) for batch in batches]
        index = self._costs.place(len(ready.token_ids), shapes, self._bound_s)
        batch = next((batch for batch in batches if not len(batch)), None) if index is None else batches[index]
        if batch is None:
            batch = Batch(self._target, self._eos, self._max_active, self._left)
            self._batches.append(batch)
            self._turns.append(batch)
        batch.add(ready)

    def _cut(self, piece: _Piece, limit_s: float) -> bool:
        """Whether the batch whose turn it is has got too large for ``limit_s``: then a sequence goes to another."""
        batch = self._next_batch()
        longest_s = self._costs.longest_s(batch.longest, limit_s)
        if longest_s > limit_s:
            self._say_not_kept(limit_s, batch.longest)
        if len(batch) < 2 or self._costs.decode_s(batch.cache_tokens) <= longest_s:
            return False
        released = batch.release()
        if released is None or released.cache is None:
            return False
        piece.arrays = [array for layer in released.cache for array in layer.state]
        mx.async_eval(piece.arrays)  # type: ignore[no-untyped-call]
        self._place(released, besides=batch)
        return True

    def _say_not_kept(self, limit_s: float, tokens: int) -> None:
        """Once: it holds for all who are as long."""
        if not self._bound_said:
            self._bound_said = True
            log.warning(
                "max_step_ms of %.0f cannot be kept: a step of one sequence of %d tokens takes %.0f ms here",
                *(1000 * limit_s, tokens, 1000 * self._costs.decode_s(tokens)),
            )

    @property
    def _bound_s(self) -> float:
        """How long a batch's step should be at most."""
        returns = time.perf_counter() - self._disturbed_s < RETURNS_S
        return self._max_step_s if returns else max(self._max_step_s, UNDISTURBED_STEP_S)

    def _next_batch(self) -> Batch:
        """The batch whose turn it is, of those that have work."""
        while not self._turns[0].has_work():
            self._turns.rotate(-1)
        return self._turns[0]

    def _decode(self, piece: _Piece, limit_s: float | None, chunk: Chunk | None = None) -> list[Emission]:
        batch = self._next_batch()
        self._turns.rotate(-1)
        cache_tokens = batch.cache_tokens
        emissions = batch.step(None if limit_s is None else AIM * limit_s, chunk)
        piece.arrays = batch.under_way()
        piece.decodes = bool(piece.arrays)
        if batch.same_for > 1:
            piece.cache_tokens = cache_tokens
        # A sequence's first step computes the last token of its prompt; the last token that it emits is not needed.
        ended = sum(emission.finish is not None for emission in emissions)
        self.computed_tokens += sum(len(emission.token_ids) for emission in emissions) + batch.begun - ended
        return emissions

    def _left(self, token_ids: tuple[int, ...], cache: list[Any]) -> None:
        """A sequence has left its batch. Its part of the batch's cache must be copied while that is there."""
        if self._prompt_caches.keep(token_ids, KVLayers(cache, len(token_ids))):
            compute(cache)

    def _decoding(self) -> int:
        return sum(len(batch) for batch in self._batches)

    def _prompt(self, request_id: str) -> _Prompt | None:
        return next((prompt for prompt in self._prompts if prompt.handover.spec.request_id == request_id), None)

    def _batch(self, request_id: str) -> Batch | None:
        return next((batch for batch in self._batches if request_id in batch), None)


class _Prompt:
    """A sequence on its way into a batch: its last token is left for the batch to compute."""

    def __init__(self, handover: Handover, target: Any) -> None:
        self.handover = handover
        self._target = target
        self._cache = handover.cache
        self._fresh = handover.cache is None
        self.offset = 0 if handover.cache is None else len(handover.token_ids) - 1

    @property
    def remaining(self) -> int:
        """Tokens to compute."""
        return len(self.handover.token_ids) - 1 - self.offset

    @property
    def computed(self) -> bool:
        """True if it may join a batch."""
        return self.remaining == 0

    def resume(self, prompt_caches: PromptCaches) -> list[Emission]:
        """At the beginning, begin behind what is known already; returns what is to be said of that."""
        known = prompt_caches.find(self.handover.token_ids) if self._fresh else None
        self._fresh = False
        if known is None:
            return []
        self._cache, self.offset = known.target, known.tokens
        spec = self.handover.spec
        return [Emission(spec.request_id, cached_tokens=min(known.tokens, len(spec.prompt)))]

    def leave(self, prompt_caches: PromptCaches) -> None:
        """Leave what was computed; nothing is computed any more."""
        if self._cache is not None:
            prompt_caches.keep(self.handover.token_ids[: self.offset], KVLayers(self._cache, self.offset))

    def compute(self, tokens: int, size: int) -> list[mx.array]:
        """Dispatch the next chunk, of ``size`` where the cache can be cut back to its ``tokens``.

        Returns what is evaluated when the device is through with it.
        """
        chunk = self.chunk(tokens, size)
        self._target(mx.array(chunk.token_ids)[None], cache=chunk.cache)
        chunk.computed = True
        self.computed_chunk(chunk, tokens)
        mx.async_eval(chunk.under_way)  # type: ignore[no-untyped-call]
        return chunk.under_way

    def chunk(self, tokens: int, size: int) -> Chunk:
        """The next chunk, of ``size`` where the cache can be cut back to its ``tokens``."""
        if self._cache is None:
            self._cache = make_prompt_cache(self._target)
        padding = size - tokens if hybrid.fits(self._cache, KVCache) else 0
        return Chunk(self.handover.token_ids[self.offset : self.offset + tokens] + (0,) * padding, self._cache)

    def computed_chunk(self, chunk: Chunk, tokens: int) -> None:
        """Go on behind ``chunk``, which was dispatched."""
        padding = len(chunk.token_ids) - tokens
        if padding:
            trim_prompt_cache(chunk.cache, padding)
        self.offset += tokens

    def ready(self) -> Handover:
        """The sequence with its cache, which is empty if there is nothing in front of its last token."""
        cache = make_prompt_cache(self._target) if self._cache is None else self._cache
        return msgspec.structs.replace(self.handover, cache=cache)


class _Piece(msgspec.Struct):
    """A piece of work under way: a chunk of ``prompt``, of so many ``tokens``, or a batch's step, or both in one.

    ``cache_tokens`` are those of the batch's cache, 0 where there is nothing to learn from.
    """

    prompt: _Prompt | None = None
    tokens: int = 0
    attended: int = 0
    decodes: bool = False
    cache_tokens: int = 0
    arrays: list[mx.array] = []
