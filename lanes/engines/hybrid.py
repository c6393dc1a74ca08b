"""A batch's decode step and a chunk of a prompt in one forward pass.

By themselves both read all weights, and a chunk that is short enough for somebody to wait for does little else: on a
CPU 16 tokens took 30 ms, 8 of a batch 40, and all 24 together 57. Such *hybrid batches* are those of Agrawal et al.,
"Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", 2024 (arXiv:2403.02310).

mlx-lm's models know nothing of this. Each token of the chunk is a row of its own to them, of length 1 as the batch's
are; only what a layer keeps, and its attention, tell them apart. So it works with every model whose layers have plain
KV caches, rotate by ``cache.offset`` and call :func:`mx.fast.scaled_dot_product_attention`; whether one does is tried
(:func:`works`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import mlx.core as mx
from mlx_lm.models.cache import KVCache, make_prompt_cache

from lanes.engines.batch_cache import BatchCache

log = logging.getLogger(__name__)

TRIED_ON: Final = ((1, 2, 3, 4, 5), (6, 7, 8))
"""Token ids of a batch's sequences in the trial, and below of a prompt."""

TRIED_CHUNK: Final = (9, 10, 11)

TOLERANCE: Final = 0.02
"""Of the largest logit: the rounding of 16 bits, over all layers. Attention to the wrong keys makes far more."""


class Chunk:
    """Tokens of a prompt, and its KV cache, which holds those before them. ``error`` is why it was not computed.

    Args:
        token_ids: at least one.
        cache: one plain KV cache for each layer.
    """

    def __init__(self, token_ids: Sequence[int], cache: list[Any]) -> None:
        self.token_ids = tuple(token_ids)
        self.cache = cache
        self.computed = False
        self.error: Exception | None = None

    @property
    def under_way(self) -> list[mx.array]:
        """What is evaluated when the device is through with it."""
        return [array for layer in self.cache for array in layer.state] if self.computed else []


def fits(layers: Sequence[Any], of: type) -> bool:
    """Whether these caches can be told apart layer by layer: no windows, no states of another kind."""
    return all(type(layer) is of for layer in layers)


def decode(model: Any, inputs: mx.array, cache: list[Any], chunk: Chunk | None) -> mx.array:
    """Logits of a batch's step, shape ``(sequences, vocabulary)``, and ``chunk`` on the way.

    A chunk that cannot be computed changes nothing, and says why; the step is then made without it.

    Args:
        model: an mlx-lm model.
        inputs: the newest token of each sequence, shape ``(sequences,)``.
        cache: of the batch; one :class:`BatchCache` for each layer if there is a chunk.
        chunk: at least one token.
    """
    if chunk is not None:
        before = [_remembered(layer) for layer in (*cache, *chunk.cache)]
        try:
            logits = _together(model, inputs, cache, chunk)
        except Exception as exc:  # whatever it is, the batch had no part in it
            chunk.error = exc
            for layer, state in zip((*cache, *chunk.cache), before, strict=True):
                vars(layer).update(vars(state))
        else:
            chunk.computed = True
            return logits
    found: mx.array = model(inputs[:, None], cache=cache)[:, -1, :]
    return found


def works(model: Any) -> bool:
    """Whether this model computes the same in one pass as in two. A few tokens are computed to find out.

    One that fails at that does not: it is no reason not to load it.
    """
    try:
        return _computes_the_same(model)
    except Exception as exc:
        log.info("no chunks beside a batch's steps: %s: %s", type(exc).__name__, exc)
        return False


def _computes_the_same(model: Any) -> bool:
    batches, prompts = [], []
    for _ in range(2):
        caches = [make_prompt_cache(model) for _ in (*TRIED_ON, TRIED_CHUNK)]
        if not all(fits(cache, KVCache) for cache in caches):
            return False
        for cache, token_ids in zip(caches, (*TRIED_ON, TRIED_CHUNK), strict=True):
            model(mx.array(token_ids)[None], cache=cache)
        *rows, prompt = caches
        batches.append([BatchCache.merge(layers) for layers in zip(*rows, strict=True)])
        prompts.append(prompt)
    inputs, chunk = mx.array([row[0] for row in TRIED_ON]), Chunk(TRIED_CHUNK, prompts[0])
    found = decode(model, inputs, batches[0], chunk)
    if chunk.error is not None:
        raise chunk.error
    expected = decode(model, inputs, batches[1], None)
    model(mx.array(TRIED_CHUNK)[None], cache=prompts[1])
    last = mx.array(TRIED_CHUNK[-1:])[None]
    found = mx.concatenate([found, model(last, cache=prompts[0])[:, -1]])
    expected = mx.concatenate([expected, model(last, cache=prompts[1])[:, -1]])
    return bool((mx.abs(found - expected).max() <= TOLERANCE * mx.abs(expected).max()).item())


def _install() -> None:
    """Let the attention of this process's models tell both apart; on the device thread, before a pass."""
    if not isinstance(mx.fast.scaled_dot_product_attention, _Attention):
        mx.fast.scaled_dot_product_attention = _Attention(mx.fast.scaled_dot_product_attention)


def _together(model: Any, inputs: mx.array, cache: list[Any], chunk: Chunk) -> mx.array:
    _install()
    token_ids = mx.concatenate([inputs, mx.array(chunk.token_ids, dtype=inputs.dtype)])
    sequences, tokens = inputs.size, len(chunk.token_ids)
    layers = [_Layer(rows, prompt, tokens) for rows, prompt in zip(cache, chunk.cache, strict=True)]
    logits: mx.array = model(token_ids[:, None], cache=layers)[:sequences, -1, :]
    return logits


def _remembered(layer: Any) -> Any:
    """A cache as it is now. Its arrays are values, but for the offset, which a batch adds to in place."""
    found = copy.copy(layer)
    if isinstance(layer.offset, mx.array):
        found.offset = layer.offset + 0
    return found


class _Both(NamedTuple):
    """Keys, or values: of the batch, shape ``(sequences, heads, keys, dimension)``; of the prompt, where that is 1."""

    rows: mx.array
    prompt: mx.array


class _Layer:
    """What a model's layer takes for its cache: the batch's and the prompt's, each given what is its own."""

    def __init__(self, rows: BatchCache, prompt: KVCache, tokens: int) -> None:
        self._rows = rows
        self._prompt = prompt
        self.offset = mx.concatenate([rows.positions, mx.arange(prompt.offset, prompt.offset + tokens)])

    def make_mask(self, tokens: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """The batch's; the prompt's is causal."""
        if window_size is not None:
            raise NotImplementedError("a window of attention over a plain KV cache")
        return self._rows.make_mask(tokens, return_array=return_array)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[_Both, _Both]:
        """Both of shape ``(sequences + tokens of the chunk, heads, 1, dimension)``."""
        sequences = len(self._rows.paddings)
        rows = self._rows.update_and_fetch(keys[:sequences], values[:sequences])
        prompt = self._prompt.update_and_fetch(_turned(keys[sequences:]), _turned(values[sequences:]))
        return _Both(rows[0], prompt[0]), _Both(rows[1], prompt[1])


class _Attention:
    """Softmax attention, as ``mx.fast.scaled_dot_product_attention`` has it, of :class:`_Both` too."""

    def __init__(self, single: Any) -> None:
        self._single = single

    def __call__(self, q: mx.array, k: Any, v: Any, **options: Any) -> mx.array:
        if not isinstance(k, _Both):
            found: mx.array = self._single(q, k, v, **options)
            return found
        sequences = k.rows.shape[0]
        rows = self._single(q[:sequences], k.rows, v.rows, **options)
        options["mask"] = "causal"
        prompt = self._single(_turned(q[sequences:]), k.prompt, v.prompt, **options)
        return mx.concatenate([rows, _turned(prompt)])


def _turned(rows: mx.array) -> mx.array:
    """Tokens that are rows as those of one sequence, and the other way round: first and third axis."""
    return rows.transpose(2, 1, 0, 3)
