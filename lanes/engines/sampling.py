"""Choosing the next token, exactly and reproducibly, for both lanes.

A token is drawn with the Gumbel-max trick (Gumbel 1954; Maddison, Tarlow and Minka, "A* Sampling", NeurIPS 2014): add
standard Gumbel noise to the processed log-probabilities and take the largest. The noise is a function of the request's
seed and the token's position alone, so a seeded request gives the same text whatever the batch, the draft length, or
the host that goes on with it. A draft that uses the *same* noise proposes the token that the target would draw
whenever their distributions agree, so that speculation at a temperature stays exact and is accepted often.

mlx-lm's own filters are compiled functions that take their setting as a constant: on a CPU, every new ``top_p`` that a
client sends would start a C++ compiler. These here are not compiled.
"""

from __future__ import annotations

import math

import mlx.core as mx

from lanes.wire import Sampling

_MASK64 = (1 << 64) - 1


def noise_key(seed: int, position: int) -> int:
    """A 64-bit key for one position of one request: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) of both numbers."""
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


class TokenChooser:
    """Chooses the tokens of one request.

    ``positions`` count tokens of prompt and answer together, from 0. Not thread-safe; device thread only.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: int) -> None:
        self._sampling = sampling
        self._prompt_tokens = prompt_tokens
        self.greedy = sampling.temperature == 0
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
        return mx.argmax(self.scores(logits, position, history), axis=-1)

    def scores(self, logits: mx.array, position: int, history: mx.array | None = None) -> mx.array:
        """Scores of the same shape as ``logits`` whose largest entry in each row is the token to take."""
        scores = self._penalised(logits, history) if self.needs_history else logits
        if self._bias is not None:
            ids, values = self._bias
            scores = scores.at[:, ids].add(values.astype(scores.dtype))
        if self.greedy:
            return scores
        scores = self._filtered(scores.astype(mx.float32) * (1 / self._sampling.temperature))
        return scores + self._noise(scores.shape, position)

    def _penalised(self, logits: mx.array, history: mx.array | None) -> mx.array:
        if history is None or logits.shape[0] != 1:
            raise ValueError("penalties need the history of exactly one position")
        sampling, answer = self._sampling, history[self._prompt_tokens :]
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

    def _filtered(self, logits: mx.array) -> mx.array:
        """Top-k, then top-p over what is left, then min-p, as vLLM and Transformers apply them."""
        sampling, vocabulary = self._sampling, logits.shape[-1]
        if 0 < sampling.top_k < vocabulary:
            kth = mx.topk(logits, sampling.top_k, axis=-1).min(axis=-1, keepdims=True)
            logits = mx.where(logits < kth, -mx.inf, logits)
        if sampling.top_p < 1:
            descending = -mx.sort(-logits, axis=-1)
            probs = mx.softmax(descending, axis=-1)
            before = mx.cumsum(probs, axis=-1) - probs
            kept = mx.where(before < sampling.top_p, descending, mx.inf)
            logits = mx.where(logits < kept.min(axis=-1, keepdims=True), -mx.inf, logits)
        if sampling.min_p > 0:
            floor = logits.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
            logits = mx.where(logits < floor, -mx.inf, logits)
        return logits

    def _noise(self, shape: tuple[int, ...], position: int) -> mx.array:
        rows, vocabulary = shape
        keys = [mx.random.key(noise_key(self._sampling.seed, position + row)) for row in range(rows)]
        return mx.stack([mx.random.gumbel((vocabulary,), key=key) for key in keys])
