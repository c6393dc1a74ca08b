"""Choosing the next token, exactly and reproducibly, for both lanes.

A token is drawn with the Gumbel-max trick (Gumbel 1954; Maddison, Tarlow and Minka, "A* Sampling", NeurIPS 2014): add
standard Gumbel noise to the processed log-probabilities and take the largest. The noise is a function of the request's
seed and the token's position alone, so a seeded request gives the same text whatever the batch, the draft length, or
the host that goes on with it. A draft that uses the *same* noise proposes the token that the target would draw
whenever their distributions agree, so that speculation at a temperature stays exact and is accepted often (Daliri,
Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding", arXiv:2408.07978). Of a
request whose client named no seed only the distribution is promised: :mod:`lanes.engines.rejection`.

mlx-lm's own filters are compiled functions that take their setting as a constant: on a CPU, every new ``top_p`` that a
client sends would start a C++ compiler. These here are not compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from lanes.wire import Sampling

_MASK64 = (1 << 64) - 1


def noise_key(seed: int, position: int, stream: int = 0) -> int:
    """A 64-bit key for one position of one request: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) of the numbers.

    Stream 0 is for what is emitted; others give noise that is independent of it.
    """
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1) + 0xD1342543DE82EF95 * stream) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def draw(logits: mx.array, samplings: Sequence[Sampling], positions: Sequence[int]) -> mx.array:
    """One token for each row, each by its own settings.

    Args:
        logits: shape ``(n, vocabulary)``; penalties and biases are in them.
        samplings: of the ``n`` rows; temperature, filters and seed are used.
        positions: of the ``n`` tokens in their sequences.

    Returns:
        Token ids, shape ``(n,)``, not yet evaluated.
    """
    if all(sampling.temperature == 0 for sampling in samplings):
        return mx.argmax(logits, axis=-1)
    scores = processed(logits, samplings)
    keys = [noise_key(s.seed, position) for s, position in zip(samplings, positions, strict=True)]
    noise = gumbel(keys, logits.shape[-1])
    if any(s.temperature == 0 for s in samplings):
        noise = noise * _column([float(s.temperature > 0) for s in samplings])
    return mx.argmax(scores + noise, axis=-1)


def processed(logits: mx.array, samplings: Sequence[Sampling]) -> mx.array:
    """The log-weights that tokens are drawn by: temperature and filters on ``logits``, shape ``(n, vocabulary)``, fp32.

    They are not normalised; a token that must not be drawn has ``-inf``. Rows of temperature 0 stay as they are.
    """
    scale = _column([1 / sampling.temperature if sampling.temperature else 1.0 for sampling in samplings])
    return _filtered(logits.astype(mx.float32) * scale, samplings)


def gumbel(keys: Sequence[int], vocabulary: int) -> mx.array:
    """Standard Gumbel noise, shape ``(n, vocabulary)``, a row for each of ``n`` keys of 64 bits."""
    noise: mx.array = mx.vmap(lambda key: mx.random.gumbel((vocabulary,), key=key))(as_keys(keys))
    return noise


def as_keys(keys: Sequence[int]) -> mx.array:
    """Keys of 64 bits as mlx takes them: shape ``(n, 2)``."""
    return mx.array([[key >> 32, key & 0xFFFFFFFF] for key in keys], dtype=mx.uint32)


def _column(values: list[float]) -> mx.array:
    """Shape ``(n, 1)``, or ``(1, 1)`` if all are the same."""
    return mx.array(values if len(set(values)) > 1 else values[:1], dtype=mx.float32)[:, None]


def _filtered(logits: mx.array, samplings: Sequence[Sampling]) -> mx.array:
    """Top-k, then top-p over what is left, then min-p, as vLLM and Transformers apply them."""
    vocabulary = logits.shape[-1]
    top_k = [s.top_k if 0 < s.top_k < vocabulary and s.temperature else vocabulary for s in samplings]
    if min(top_k) < vocabulary:
        descending = -mx.sort(-logits, axis=-1)
        kth = mx.take_along_axis(descending, mx.array([[k - 1] for k in top_k]), axis=-1)
        logits = mx.where(logits < kth, -mx.inf, logits)
    # Of rows that want no filter, the sum of what comes before a token may round up to 1.
    top_p = [s.top_p if s.top_p < 1 and s.temperature else math.inf for s in samplings]
    if min(top_p) < 1:
        descending = -mx.sort(-logits, axis=-1)
        probs = mx.softmax(descending, axis=-1)
        before = mx.cumsum(probs, axis=-1) - probs
        kept = mx.where(before < _column(top_p), descending, mx.inf)
        logits = mx.where(logits < kept.min(axis=-1, keepdims=True), -mx.inf, logits)
    min_p = [math.log(s.min_p) if s.min_p > 0 and s.temperature else -math.inf for s in samplings]
    if max(min_p) > -math.inf:
        floor = logits.max(axis=-1, keepdims=True) + _column(min_p)
        logits = mx.where(logits < floor, -mx.inf, logits)
    return logits


class TokenChooser:
    """Chooses the tokens of one request.

    ``positions`` count tokens of prompt and answer together, from 0. Not thread-safe; device thread only.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: int) -> None:
        self.sampling = sampling
        self._prompt_tokens = prompt_tokens
        self.needs_history = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        bias = sampling.logit_bias
        self._bias = (mx.array(list(bias)), mx.array(list(bias.values()))) if bias else None

    def choose(self, logits: mx.array, position: int, history: mx.array | None = None) -> mx.array:
        """The token at each of ``n`` consecutive positions.

        Args:
            logits: shape ``(n, vocabulary)``, of the target or the draft.
            position: the position of the first row's token.
            history: the token ids before it, shape ``(tokens,)``; needed if :attr:`needs_history`, and then ``n`` is 1.

        Returns:
            Token ids, shape ``(n,)``, not yet evaluated.
        """
        rows = logits.shape[0]
        return draw(self.adjusted(logits, history), [self.sampling] * rows, range(position, position + rows))

    def log_weights(self, logits: mx.array, history: mx.array | None = None) -> mx.array:
        """What :meth:`choose` draws by, with the same arguments: see :func:`processed`."""
        return processed(self.adjusted(logits, history), [self.sampling] * logits.shape[0])

    def adjusted(self, logits: mx.array, history: mx.array | None = None) -> mx.array:
        """``logits`` with penalties and biases, for :func:`draw`."""
        adjusted = self._penalised(logits, history) if self.needs_history else logits
        if self._bias is not None:
            ids, values = self._bias
            adjusted = adjusted.at[:, ids].add(values.astype(adjusted.dtype))
        return adjusted

    def _penalised(self, logits: mx.array, history: mx.array | None) -> mx.array:
        if history is None or logits.shape[0] != 1:
            raise ValueError("penalties need the history of exactly one position")
        sampling, answer = self.sampling, history[self._prompt_tokens :]
        if sampling.repetition_penalty != 1:
            seen = logits[:, history]
            penalty = sampling.repetition_penalty
            logits = mx.put_along_axis(
                logits, history[None], mx.where(seen < 0, seen * penalty, seen / penalty), axis=-1
            )
        if answer.size and sampling.frequency_penalty:
            logits = logits.at[:, answer].add(-sampling.frequency_penalty)
        if answer.size and sampling.presence_penalty:
            present = mx.zeros_like(logits)
            present[:, answer] = sampling.presence_penalty
            logits = logits - present
        return logits
