"""Building and loading models in pieces, so that the device can compute for others in between.

Everything here runs on the device thread. A model is first built of arrays that are not read yet: that shows in
milliseconds whether its architecture is known, whether the weights are that architecture's, and what it will need.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any, Final

import mlx.core as mx
import msgspec
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import RotatingKVCache, can_trim_prompt_cache, make_prompt_cache
from mlx_lm.utils import dequantize_model, load_model

from lanes.errors import ModelLoadFailed
from lanes.host.examine import Examined, Part, examine
from lanes.wire import ModelInfo, ModelProgress, ModelSpec, Stage

DEFAULT_CONTEXT_TOKENS: Final = 4096
CACHE_STEP_TOKENS: Final = 256
"""mlx-lm's caches grow by as many."""

PIECE_BYTES: Final = 8 * 1024**2
"""What is read at a time: about 45 ms of a CPU, dequantised."""

PROBE_TEXT: Final = "def calibrate(self, rounds):\n    return [self.round() for _ in range(rounds)]\n"
PROBE_TOKENS: Final = 32


class Pair(msgspec.Struct, frozen=True):
    """A loaded target, its draft if it has one, and what both lanes need to know of them."""

    info: ModelInfo
    target: Any
    draft: Any | None
    tokenizer: Any
    eos: frozenset[int]


def build(part: Part) -> nn.Module:
    """The model, none of its weights read. On a CPU they become fp32, quantised ones too: it is the only type that the
    CPU's BLAS multiplies fast.

    Raises:
        ModelLoadFailed: the architecture is not known, or the weights are not its.
    """
    try:
        model, _ = load_model(part.directory, lazy=True)
        # Every layer has drawn weights that are then replaced. The keys that follow from each draw are a chain that
        # grows for as long as nobody evaluates it: 2 KiB a draw, over all loads (mlx 0.32.4).
        mx.eval(mx.random.state)
        if mx.default_device() == mx.Device(mx.cpu):
            model = dequantize_model(model)
            model.set_dtype(mx.float32)
    except Exception as exc:  # whatever a malformed file makes the loader raise
        raise ModelLoadFailed(f"{part.directory}: {type(exc).__name__}: {exc}") from exc
    return model


def weight_bytes(model: nn.Module) -> int:
    """What the weights take on the device."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def cache_bytes(model: nn.Module, tokens: int) -> int:
    """What the cache of one sequence of ``tokens`` takes: from the shapes that the model itself gives its caches.

    Raises:
        ModelLoadFailed: the model cannot be run.
    """
    try:
        one, two = (_cache_sizes(model, length) for length in (1, CACHE_STEP_TOKENS + 1))
    except Exception as exc:  # the model's own code
        raise ModelLoadFailed(f"its forward pass cannot be run: {type(exc).__name__}: {exc}") from exc
    total_bytes = 0
    for cache, small, large in zip(make_prompt_cache(model), one, two, strict=True):
        window = min(tokens, getattr(cache, "max_size", None) or tokens)
        steps = -(-window // CACHE_STEP_TOKENS)
        total_bytes += small + (large - small) * (steps - 1)
    return total_bytes


def _cache_sizes(model: nn.Module, tokens: int) -> list[int]:
    """Of a pass that is never computed."""
    caches = make_prompt_cache(model)
    model(mx.zeros((1, tokens), mx.int32), cache=caches)
    return [int(cache.nbytes) for cache in caches]


def trimmable(model: nn.Module) -> bool:
    """Whether rejected draft tokens can be taken back out of its caches, however long the text.

    A cache of a sliding window says that it can, and no longer can once the window is full (mlx-lm 0.31.3).
    """
    caches = make_prompt_cache(model)
    return bool(can_trim_prompt_cache(caches)) and not any(_has_window(cache) for cache in caches)


def _has_window(cache: Any) -> bool:
    return isinstance(cache, RotatingKVCache) or any(_has_window(part) for part in getattr(cache, "caches", ()))


def context_tokens(examined: Examined) -> int:
    """Prompt and answer together: what the model allows, and the configuration."""
    own = int(examined.target.config.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS)
    return min(own, examined.spec.context_tokens or own)


def loading(examined: Examined) -> Generator[ModelProgress, None, Pair]:
    """Load target and draft as one unit, one array after the other.

    Raises:
        ModelLoadFailed: either cannot be loaded, or gives no numbers.
    """
    started_s = time.monotonic()
    target = yield from _load_part(examined.spec.name, "target", examined.target)
    draft = None
    if examined.draft is not None:
        draft = yield from _load_part(examined.spec.name, "draft", examined.draft)
    tokenizer = examined.target.tokenizer
    info = ModelInfo(
        name=examined.spec.name,
        target=examined.spec.target,
        draft=examined.spec.draft,
        context_tokens=context_tokens(examined),
        vocab_size=len(tokenizer.get_vocab()),
        target_bytes=weight_bytes(target),
        draft_bytes=weight_bytes(draft) if draft is not None else 0,
        load_s=round(time.monotonic() - started_s, 3),
    )
    eos = frozenset(int(token) for token in tokenizer.eos_token_ids if token is not None)
    return Pair(info, target, draft, tokenizer, eos)


def _load_part(name: str, stage: Stage, part: Part) -> Generator[ModelProgress, None, nn.Module]:
    model = build(part)
    total_bytes = weight_bytes(model)
    for done_bytes in _evaluated(model):
        yield ModelProgress(name, stage, done_bytes, total_bytes)
    logits = model(mx.array([probe_prompt(part.tokenizer)]))
    if not mx.isfinite(logits).all().item():
        raise ModelLoadFailed(f"{part.directory}: its weights are damaged: the model's output is not finite")
    yield ModelProgress(name, stage, total_bytes, total_bytes)
    return model


def _evaluated(model: nn.Module) -> Iterator[int]:
    done_bytes = 0
    piece: list[mx.array] = []
    for _, array in tree_flatten(model.parameters()):
        piece.append(array)
        if sum(part.nbytes for part in piece) >= PIECE_BYTES:
            done_bytes += _evaluate(piece)
            yield done_bytes
    yield done_bytes + _evaluate(piece)


def _evaluate(piece: list[mx.array]) -> int:
    mx.eval(piece)
    size_bytes = sum(array.nbytes for array in piece)
    piece.clear()
    return size_bytes


def probe_prompt(tokenizer: Any) -> list[int]:
    """Tokens to try a model with."""
    return list(tokenizer.encode(PROBE_TEXT)[:PROBE_TOKENS])


def load_pair(spec: ModelSpec) -> Pair:
    """Load a pair in one go.

    Raises:
        ModelLoadFailed: it cannot be loaded.
    """
    steps = loading(examine(spec))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            pair: Pair = end.value
            return pair
