"""One batch of sequences, decoded together by ``vllm_mlx.Scheduler``, one step at a time.

vllm-mlx 0.6.0 samples a whole batch with the settings of its first request, and mlx-lm 0.31 computes the last token of
a prompt in a step of its own as the sequence joins. Both are replaced here: a sequence joins with its last token as it
stands, which the batch's next step computes like any other, and a step gives each row its own sequence's settings
(:func:`lanes.engines.sampling.draw`). mlx-lm's cuts the logits into rows, keeps every row's token ids on the device and
normalises what nobody reads: a thousand small operations in a step of 32 sequences, which a GPU then waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final, cast

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, PromptProcessingBatch, SequenceStateMachine, TokenBuffer
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache
from vllm_mlx import Request, SamplingParams, Scheduler, SchedulerConfig

from lanes.engines import hybrid
from lanes.engines.base import Emission, Handover, SequenceSpec
from lanes.engines.batch_cache import BatchCache, joining
from lanes.engines.hybrid import Chunk
from lanes.engines.kv_layers import compute
from lanes.engines.sampling import TokenChooser, draw

RESET_AFTER_SEQUENCES: Final = 1_000
"""mlx-lm's GenerationBatch never shortens its list of samplers while none is set; a reset while idle empties it."""


Leave = Callable[[tuple[int, ...], list[Any]], None]


class Batch:
    """Sequences come in with their KV caches (:class:`lanes.engines.base.Handover`), and leave one by one.

    Args:
        target: an mlx-lm model; shared with other engines, never changed.
        eos: token ids that end an answer.
        max_active: sequences decoded at a time.
        leave: told what a sequence that leaves computed: tokens, and a cache of all of them, which is still a plan.
    """

    def __init__(self, target: Any, eos: frozenset[int], max_active: int, leave: Leave) -> None:
        config = SchedulerConfig(
            max_num_seqs=max_active,
            completion_batch_size=max_active,
            prefill_batch_size=max_active,
            enable_prefix_cache=False,
        )
        self._scheduler = _OwnSteps(target, _TokenIdsOnly(eos), config, leave)
        # The scheduler forgets an aborted sequence in its next step only; under ids of our own nobody waits for that.
        self._numbers = count()
        self._scheduler_ids: dict[str, str] = {}
        self._request_ids: dict[str, str] = {}
        self._specs: dict[str, SequenceSpec] = {}
        self._tokens: dict[str, int] = {}
        self._joining: set[str] = set()
        self._aborted: set[str] = set()
        self._since_reset = 0
        self._same_for = 0
        self._to_copy = False
        self._uncopied: list[Any] = []
        self._copied: mx.array | None = None
        self.begun = 0
        """Sequences whose last token of the prompt the last step computed."""

    def add(self, handover: Handover) -> None:
        """Let a sequence join in the next step, with the cache that it must have."""
        spec = handover.spec
        chooser = TokenChooser(spec.sampling, len(spec.prompt))
        sampling = SamplingParams(
            max_tokens=spec.max_tokens - handover.emitted,
            temperature=0.0,
            top_p=1.0,
            # One for every sequence, greedy ones too: a batch whose sequences have none is not re-indexed when one
            # leaves, and the next sequence to join would be given its neighbour's processor.
            logits_processors=[_Row(chooser, handover.token_ids)],
        )
        scheduler_id = str(next(self._numbers))
        request = Request(scheduler_id, list(handover.token_ids), sampling)
        self._scheduler.add_request(request)
        request.prompt_cache = joining(handover.cache or [])
        request.cached_tokens = len(handover.token_ids) - 1
        request.remaining_tokens = [handover.token_ids[-1]]
        self._scheduler_ids[spec.request_id] = scheduler_id
        self._request_ids[scheduler_id] = spec.request_id
        self._specs[spec.request_id] = spec
        self._tokens[spec.request_id] = len(handover.token_ids)
        self._joining.add(spec.request_id)
        self._since_reset += 1

    def cancel(self, request_id: str) -> None:
        """Forget a sequence; the scheduler lets go of it as its next step begins."""
        self._scheduler.leave_early(self._scheduler_ids[request_id])
        self._abort(request_id)

    def release(self) -> Handover | None:
        """Let go of one sequence, between two steps, to go on in another batch; None if none can.

        It is the last row, so that no other has to move. Its cache is still a plan, to be computed before the next
        step, and lacks its newest token, which is computed once more where it goes on, and gives the same one after it.
        """
        running = self._scheduler.running_batch()
        if running is None or self._to_copy or self._uncopied:
            return None
        for uid in reversed(running.uids):
            scheduler_id = self._scheduler.uid_to_request_id[uid]
            request_id = self._request_ids.get(scheduler_id)
            if request_id is None or uid in running.new:
                continue
            token_ids, cache = self._scheduler.computed(scheduler_id)
            if not can_trim_prompt_cache(cache):
                return None
            trim_prompt_cache(cache, 1)
            handover = Handover(self._specs[request_id], token_ids, cache)
            self._abort(request_id)
            return handover
        return None

    def _abort(self, request_id: str) -> None:
        scheduler_id = self._scheduler_ids[request_id]
        self._forget(request_id)
        self._joining.discard(request_id)
        self._scheduler.abort_request(scheduler_id)
        self._aborted.add(scheduler_id)

    def _forget(self, request_id: str) -> None:
        del self._request_ids[self._scheduler_ids.pop(request_id)], self._tokens[request_id], self._specs[request_id]

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._scheduler_ids

    def __len__(self) -> int:
        return len(self._scheduler_ids)

    def has_work(self) -> bool:
        """True if a step would do something, be it to let go of what was cancelled."""
        return bool(self._scheduler.has_requests())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, which all are padded to; 0 of an empty batch."""
        return max(self._tokens.values(), default=0)

    @property
    def cache_tokens(self) -> int:
        """Tokens of its cache, as all sequences are padded to the longest."""
        return len(self) * self.longest

    @property
    def same_for(self) -> int:
        """Steps since a sequence joined or left, that one not counted.

        What the step itself costs is the copying of the batch's cache; the next may be the first of its shape.
        """
        return self._same_for

    @property
    def carries(self) -> bool:
        """True if the next step is a plain decode step, which a chunk can be computed in."""
        if self._joining or self._aborted or self._to_copy or self._uncopied:
            return False
        running = self._scheduler.running_batch()
        return running is not None and bool(running.prompt_cache) and hybrid.fits(running.prompt_cache, BatchCache)

    def step(self, limit_s: float | None = None, chunk: Chunk | None = None) -> list[Emission]:
        """Dispatch a decode step, and read the one before it.

        So that none is long, what has to be copied within its cache, for those who left or for want of room, is copied
        in steps of their own: as many layers as fit into ``limit_s``, and the others in the next.

        Where it :attr:`carries` one, a ``chunk`` of a prompt is computed in the same pass.
        """
        self._copied, self.begun = None, 0
        if self._aborted:
            self._let_go()
        if not (self._to_copy or self._uncopied):
            self._to_copy = self._make_room()
        if self._to_copy or self._uncopied:
            self._copy(limit_s)
            return []
        joined, ended = bool(self._joining), False
        running = self._scheduler.running_batch()
        if running is not None:
            running.chunk, running.begun = chunk, 0
        outputs = self._scheduler.step().outputs
        if running is not None:
            running.chunk, self.begun = None, running.begun
        self._joining.clear()
        emissions = []
        for output in outputs:
            if output.finished:
                ended = True
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
            self._tokens[request_id] += len(output.new_token_ids)
            if output.finished:
                self._forget(request_id)
        if self._since_reset >= RESET_AFTER_SEQUENCES and not self._scheduler.has_requests():
            self._scheduler.reset()
            self._since_reset = 0
        self._same_for = 0 if joined or ended else self._same_for + 1
        self._to_copy = ended and len(self) > 0
        return emissions

    def _let_go(self) -> None:
        """Of those that were cancelled or released, before what they leave is copied, and before the next step."""
        self._scheduler.abort_now()
        while self._aborted:
            self._scheduler.remove_finished_request(self._aborted.pop())
        self._same_for = 0
        self._to_copy, self._uncopied = len(self) > len(self._joining), []

    def _make_room(self) -> bool:
        """Whether the cache needs other arrays for the next step, and for those who join in it; they are made."""
        running = self._scheduler.running_batch()
        layers = running.prompt_cache if running is not None else []
        joining = [self._tokens[request_id] - 1 for request_id in self._joining]
        longest = max(joining, default=0)
        made = [layer.make_room(len(joining), longest) for layer in layers if isinstance(layer, BatchCache)]
        return any(made)

    def under_way(self) -> list[mx.array]:
        """What the last step dispatched: evaluated when the device is through with it."""
        if self._copied is not None:
            return [self._copied]
        running = self._scheduler.running_batch()
        tokens = running._next_tokens if running is not None else None
        return [] if tokens is None else [tokens]

    def _copy(self, limit_s: float | None) -> None:
        """Have the cache of those that are in the batch now computed; with a limit, wait for it layer by layer.

        Nobody may hold on to it, or it would be copied whole: the step under way is waited for, and of what is computed
        something behind it.
        """
        running = self._scheduler.running_batch()
        if self._to_copy:
            self._to_copy, self._same_for = False, 0
            layers = running.prompt_cache if running is not None else []
            self._uncopied = [layer for layer in layers if not layer.empty()]
            mx.eval(self.under_way(), [layer.moving for layer in self._uncopied if isinstance(layer, BatchCache)])
        started_s = layer_started_s = time.perf_counter()
        while self._uncopied:
            compute([self._uncopied.pop()])
            self._copied = mx.zeros(1)
            mx.async_eval(self._copied)  # type: ignore[no-untyped-call]
            if limit_s is None:
                continue
            mx.eval(self._copied)
            now_s = time.perf_counter()
            if now_s - started_s + (now_s - layer_started_s) > limit_s:
                break
            layer_started_s = now_s

    def close(self) -> None:
        """Drop all sequences."""
        self._scheduler.reset()
        for ids in (self._scheduler_ids, self._request_ids, self._specs, self._tokens, self._joining, self._aborted):
            ids.clear()


class _OwnSteps(Scheduler):  # type: ignore[misc]
    """A scheduler with batches of our own; ``leave`` is told of sequences that leave it."""

    def __init__(self, target: Any, tokenizer: Any, config: SchedulerConfig, leave: Leave) -> None:
        super().__init__(target, tokenizer, config)
        self._leave = leave

    def leave_early(self, scheduler_id: str) -> None:
        """Say what a sequence that is about to be aborted has computed."""
        uid, running = self.request_id_to_uid.get(scheduler_id), self.running_batch()
        if uid is None or scheduler_id not in self.running or running is None or uid in running.new:
            return  # it has computed nothing yet
        self._leave(*self.computed(scheduler_id))

    def computed(self, scheduler_id: str) -> tuple[tuple[int, ...], list[Any]]:
        """What a running sequence has computed: tokens, and a cache of all of them, which is still a plan."""
        uid = self.request_id_to_uid[scheduler_id]
        cache, _ = self.batch_generator.extract_cache([uid])[uid]
        return _tokens_of(self.running[scheduler_id]), cache

    def abort_now(self) -> None:
        """Drop those that were aborted: out of the running batch all at once, for its cache may shrink with each."""
        uids = [self.request_id_to_uid[name] for name in self._pending_abort_ids if name in self.request_id_to_uid]
        if uids:
            self.batch_generator.remove(uids)
        self._process_pending_aborts()

    def running_batch(self) -> _RunningBatch | None:
        """The sequences that are decoded; None before the first has joined."""
        return self.batch_generator._generation_batch if self.batch_generator is not None else None

    def _restored_cache_matches_kv_bound(self, cache: Any) -> bool:
        """A cache of our own class (:func:`joining`) is of this model. Else all its tokens were computed once more."""
        return True

    def _validate_cache(self, cache: Any) -> bool:
        """Nor is one in which there is nothing yet at fault."""
        return True

    def _process_batch_responses(self, responses: list[Any]) -> Any:
        """With each last response comes the sequence's cache, which the scheduler would wait for, and drop."""
        left = [(self.running.get(self.uid_to_request_id.get(r.uid)), r.prompt_cache) for r in responses]
        for response in responses:
            response.prompt_cache = None
        processed = super()._process_batch_responses(responses)
        for request, cache in left:
            if request is not None and cache is not None:
                self._leave(_tokens_of(request), cache)
        return processed

    def _ensure_batch_generator(self, sampling_params: SamplingParams) -> None:
        super()._ensure_batch_generator(sampling_params)
        generator = self.batch_generator
        if isinstance(generator._generation_batch, _RunningBatch):
            return
        generator._prompt_batch = _JoiningBatch.empty(generator.model, _unused)
        generator._generation_batch = _RunningBatch.empty(generator.model, _unused)


def _unused(logits: mx.array) -> mx.array:
    """mlx-lm's sampler."""
    raise NotImplementedError("rows are sampled in the running batch's step")


class _JoiningBatch(PromptProcessingBatch):  # type: ignore[misc]
    """Sequences on their way into the running batch, with nothing left to compute but their last tokens."""

    def generate(self, tokens: list[list[int]]) -> _RunningBatch:
        """Begin with these tokens, one of each sequence; nothing is computed yet."""
        joining: _RunningBatch = _RunningBatch.empty(self.model, _unused)
        joining.uids, joining.tokens, joining.prompt_cache = self.uids, self.tokens, self.prompt_cache
        joining.samplers, joining.logits_processors = self.samplers, self.logits_processors
        joining.state_machines, joining.max_tokens = self.state_machines, self.max_tokens
        joining._token_context = [TokenBuffer(known) for known in self.tokens]
        joining._next_tokens = mx.array([token for (token,) in tokens], dtype=mx.uint32)
        joining._next_logprobs = [None] * len(tokens)
        # The first token that the running batch reads of a sequence is the prompt's: it ends nothing, and counts not.
        joining._num_tokens = [-1] * len(tokens)
        joining._matcher_states = [_NOTHING.make_state() for _ in tokens]
        joining.new = set(self.uids)
        return joining


_NOTHING: Final = SequenceStateMachine()
"""Ends with no token."""


class _RunningBatch(GenerationBatch):  # type: ignore[misc]
    """mlx-lm's running batch with a step that samples all rows at once."""

    chunk: Chunk | None = None
    """Computed in the next step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.new: set[int] = set()
        self.begun = 0

    def extend(self, batch: _RunningBatch) -> None:
        """Let sequences in, whose last token the next step computes."""
        super().extend(batch)
        self.new |= batch.new

    def filter(self, keep: list[int]) -> None:
        """Keep these rows; the last ones take the places of those that leave, and the others stay where they are."""
        last = [row for row in keep if row >= len(keep)]
        kept = set(keep)
        super().filter([row if row in kept else last.pop() for row in range(len(keep))])

    def next(self) -> list[Any]:
        """A step, and what the one before it brought: nothing yet to those that are new."""
        new, self.new = self.new & set(self.uids), set()
        self.begun = len(new)
        responses: list[Any] = super().next()
        for row, uid in enumerate(self.uids):
            if uid in new:
                self._matcher_states[row] = self.state_machines[row].make_state()
        return [response for response in responses if response.uid not in new]

    def _step(self) -> tuple[list[int], list[None]]:
        """Dispatch a step, and wait for the one before: its tokens, and nothing in place of their log-probabilities."""
        inputs: mx.array = self._next_tokens  # type: ignore[has-type]
        chunk, self.chunk = self.chunk, None
        logits = hybrid.decode(self.model, inputs, self.prompt_cache, chunk)
        rows = [row for (row,) in self.logits_processors]
        if any(row.adjusts for row in rows):
            logits = mx.concatenate([self._adjusted(logits, index, inputs) for index in range(len(rows))])
        self._next_tokens = draw(logits, [row.sampling for row in rows], [row.next_position() for row in rows])
        mx.async_eval(self._next_tokens, chunk.under_way if chunk else [])  # type: ignore[no-untyped-call]
        token_ids = cast(list[int], inputs.tolist())
        for sequence, token_id in zip(self.tokens, token_ids, strict=True):
            sequence.append(token_id)
        self._current_tokens, self._current_logprobs = inputs, [None] * len(token_ids)
        self._next_logprobs = [None] * len(token_ids)
        return token_ids, self._current_logprobs

    def _adjusted(self, logits: mx.array, index: int, inputs: mx.array) -> mx.array:
        (row,) = self.logits_processors[index]
        tokens = None
        if row.needs_history:  # the newest token is known to the device only
            tokens = self._token_context[index].update_and_fetch(inputs[index : index + 1])
        adjusted: mx.array = row.adjusted(logits[index : index + 1], tokens)
        return adjusted


def _tokens_of(request: Request) -> tuple[int, ...]:
    return (*request.prompt_token_ids, *request.output_token_ids)


class _Row:
    """A sequence's sampling, in the place of mlx-lm's logits processors.

    Args:
        chooser: the sequence's.
        known: the token ids it joins with.
    """

    def __init__(self, chooser: TokenChooser, known: tuple[int, ...]) -> None:
        self._chooser = chooser
        self._known: tuple[int, ...] | None = known
        self._before = mx.array([], dtype=mx.uint32)
        self._position = len(known)
        self.sampling = chooser.sampling
        self.needs_history = chooser.needs_history
        self.adjusts = chooser.needs_history or bool(chooser.sampling.logit_bias)

    def adjusted(self, logits: mx.array, tokens: mx.array | None) -> mx.array:
        """``logits``, shape ``(1, vocabulary)``, with penalties and biases; ``tokens`` as mlx-lm counts them.

        Those of a sequence that came with a cache begin behind it.
        """
        if tokens is None or not self.needs_history:
            return self._chooser.adjusted(logits, None)
        if self._known is not None:
            self._before = mx.array(self._known[: len(self._known) - tokens.size], dtype=mx.uint32)
            self._known = None
        return self._chooser.adjusted(logits, mx.concatenate([self._before, tokens]))

    def next_position(self) -> int:
        """The position of the token that is chosen next; each is asked for once."""
        self._position += 1
        return self._position - 1


class _TokenIdsOnly:
    """The scheduler's tokenizer. Text is made elsewhere, so decoding every token here again would be wasted."""

    clean_up_tokenization_spaces = False

    def __init__(self, eos: frozenset[int]) -> None:
        self.eos_token_ids = set(eos)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError("prompts arrive as token ids")

    def decode(self, token_ids: list[int], **_: object) -> str:
        return ""
