"""The throughput lane's engine: continuous batching by ``vllm_mlx.Scheduler``, one step at a time.

vllm-mlx 0.6.0 samples a whole batch with the settings of its first request. So every sequence is given to it as greedy,
and the real choice is made in a logits processor of its own, whose scores' largest entry is the token to take
(:class:`lanes.engines.sampling.TokenChooser`).
"""

from __future__ import annotations

import time
from importlib import import_module
from itertools import count
from typing import Any

import mlx.core as mx
from vllm_mlx import Request, SamplingParams, Scheduler, SchedulerConfig

from lanes.engines.base import Emission, Handover, SequenceSpec
from lanes.engines.prefill_chunk import SIZES, UNMEASURED_TOKENS, PrefillChunk
from lanes.engines.sampling import TokenChooser

PREFILL_BATCH_SIZE = 4
"""Prompts in one step while nobody waits for the device; one at a time otherwise."""

UNDISTURBED_STEP_S = 0.25
"""How long a step may be while nobody waits: whoever comes next waits for its end. On two CPU cores chunks of 256
tokens take a seventh less time for the same work than chunks of 64, and larger ones hardly less."""

RESET_AFTER_SEQUENCES = 1_000
"""mlx-lm's GenerationBatch never shortens its list of samplers while none is set; a reset while idle empties it."""


class ThroughputEngine:
    """Continuous batching over one target.

    Args:
        target: an mlx-lm model; shared with other engines, never changed.
        eos: token ids that end an answer.
        max_active: sequences decoded at a time; more wait their turn in order of arrival.
    """

    def __init__(self, target: Any, eos: frozenset[int], max_active: int) -> None:
        self._scheduler = Scheduler(
            target,
            _TokenIdsOnly(eos),
            SchedulerConfig(
                max_num_seqs=max_active,
                completion_batch_size=max_active,
                prefill_batch_size=min(PREFILL_BATCH_SIZE, max_active),
                prefill_step_size=UNMEASURED_TOKENS,
                enable_prefix_cache=False,
            ),
        )
        # The scheduler forgets an aborted sequence in its next step only; under ids of our own nobody waits for that.
        self._numbers = count()
        self._scheduler_ids: dict[str, str] = {}
        self._request_ids: dict[str, str] = {}
        self._aborted: set[str] = set()
        self._chunk = PrefillChunk()
        self._since_reset = 0
        self.computed_tokens = 0

    def add(self, spec: SequenceSpec) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self.adopt(Handover(spec, spec.token_ids))

    def adopt(self, handover: Handover) -> None:
        """See :class:`lanes.engines.base.Adopting`. A cache is used as it stands: only the last token is computed."""
        spec = handover.spec
        if spec.request_id in self._scheduler_ids:
            raise ValueError(f"request id {spec.request_id!r} is in use")
        chooser = TokenChooser(spec.sampling, len(spec.prompt))
        sampling = SamplingParams(
            max_tokens=spec.max_tokens - handover.emitted,
            temperature=0.0,
            top_p=1.0,
            # One for every sequence, greedy ones too: a batch whose sequences have none is not re-indexed when one
            # leaves, and the next sequence to join would be given its neighbour's processor.
            logits_processors=[_Processor(chooser, handover.token_ids)],
        )
        scheduler_id = str(next(self._numbers))
        request = Request(scheduler_id, list(handover.token_ids), sampling)
        self._scheduler.add_request(request)
        if handover.cache is not None:
            request.prompt_cache = handover.cache
            request.cached_tokens = len(handover.token_ids) - 1
            request.remaining_tokens = [handover.token_ids[-1]]
        self._scheduler_ids[spec.request_id] = scheduler_id
        self._request_ids[scheduler_id] = spec.request_id
        self._since_reset += 1

    def cancel(self, request_id: str) -> None:
        """See :class:`lanes.engines.base.Engine`. The scheduler lets go of the sequence as its next step begins."""
        scheduler_id = self._scheduler_ids.pop(request_id, None)
        if scheduler_id is not None:
            del self._request_ids[scheduler_id]
            self._scheduler.abort_request(scheduler_id)
            self._aborted.add(scheduler_id)

    def has_work(self) -> bool:
        """See :class:`lanes.engines.base.Engine`."""
        return bool(self._scheduler.has_requests())

    def active(self) -> int:
        """See :class:`lanes.engines.base.Engine`."""
        return len(self._request_ids)

    def step(self, limit_s: float | None = None) -> list[Emission]:
        """One decode step of the whole batch and one prefill chunk of the sequences that join it."""
        emissions = []
        for output in self._measured_step(limit_s):
            if output.finished:
                self._scheduler.remove_finished_request(output.request_id)
            request_id = self._request_ids.get(output.request_id)
            if request_id is None:
                continue  # cancelled
            failed = output.finish_reason == "error"
            emissions.append(
                Emission(
                    request_id,
                    tuple(output.new_token_ids),
                    finish=output.finish_reason if output.finished and not failed else None,
                    error="the batch failed; the host's log says why" if failed else None,
                )
            )
            if output.finished:
                del self._request_ids[output.request_id]
                del self._scheduler_ids[request_id]
        while self._aborted:
            self._scheduler.remove_finished_request(self._aborted.pop())
        if self._since_reset >= RESET_AFTER_SEQUENCES and not self._scheduler.has_requests():
            self._scheduler.reset()
            self._since_reset = 0
        return emissions

    def _measured_step(self, limit_s: float | None) -> list[Any]:
        """A step of the scheduler, its prefill sized for ``limit_s``."""
        batch = self._scheduler.batch_generator  # None before the first step, and after a reset
        prompts = 1 if limit_s is not None else PREFILL_BATCH_SIZE
        tokens = self._chunk.choose(UNDISTURBED_STEP_S if limit_s is None else limit_s)
        if batch is not None:
            batch.prefill_batch_size = prompts
            batch.prefill_step_size = max(tokens // prompts, 1)
            batch._prompt_batch.prefill_step_size = SIZES[-1]  # or it cuts the chunk again, into those of the start
        prefilled_before = _prefilled_tokens(batch)
        started_s = time.perf_counter()
        outputs = self._scheduler.step().outputs
        if limit_s is not None:
            # The decode step that was dispatched ahead. Looked up each time, for a thread may rebind the stream, and
            # by name, for `mlx_lm.generate` is also a function.
            mx.synchronize(import_module("mlx_lm.generate").generation_stream)
        prefilled = _prefilled_tokens(self._scheduler.batch_generator) - prefilled_before
        self._chunk.observe(max(prefilled, 0), time.perf_counter() - started_s)
        self.computed_tokens += max(prefilled, 0) + sum(len(output.new_token_ids) for output in outputs)
        return list(outputs)

    def close(self) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self._scheduler.reset()
        self._scheduler_ids.clear()
        self._request_ids.clear()
        self._aborted.clear()


def _prefilled_tokens(batch: Any | None) -> int:
    """Prompt tokens that mlx-lm's batch generator has processed: its own count, for its `stats`."""
    return 0 if batch is None else int(batch._prompt_tokens_counter)


class _Processor:
    """mlx-lm's logits processor interface around a chooser: token ids so far and logits ``(1, vocabulary)``.

    Of a sequence that came with a cache, mlx-lm's token ids begin behind it.

    Args:
        chooser: the sequence's.
        known: the token ids before the first call.
    """

    def __init__(self, chooser: TokenChooser, known: tuple[int, ...]) -> None:
        self._chooser = chooser
        self._known = known
        self._before: mx.array | None = None

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        if self._before is None:
            self._before = mx.array(self._known[: len(self._known) - tokens.size], dtype=tokens.dtype)
        position = self._before.size + tokens.size
        history = mx.concatenate([self._before, tokens]) if self._chooser.needs_history else None
        return self._chooser.scores(logits, position, history)


class _TokenIdsOnly:
    """The scheduler's tokenizer. Text is made elsewhere, so decoding every token here again would be wasted."""

    clean_up_tokenization_spaces = False

    def __init__(self, eos: frozenset[int]) -> None:
        self.eos_token_ids = set(eos)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("prompts arrive as token ids")

    def decode(self, token_ids: list[int], **_: object) -> str:
        return ""
