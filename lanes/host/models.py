"""Loading a pair: where its files are, whether they are safe to load, and whether its draft fits its target.

Everything here that touches arrays runs on the device thread.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
from huggingface_hub import snapshot_download
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

from lanes import embedded
from lanes.errors import ModelLoadFailed
from lanes.wire import ModelInfo, ModelSpec

EMBEDDED = "embedded:"
FILES = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
"""What is fetched of a Hugging Face repository: data only, never code."""

UNSAFE_KEYS = ("model_file", "auto_map")
"""Keys of config.json and tokenizer_config.json that make a loader run the model's own code (CVE-2026-5843)."""

DEFAULT_CONTEXT_TOKENS = 4096


class Pair(msgspec.Struct, frozen=True):
    """A loaded target, its draft if it has one, and what both lanes need to know of them."""

    info: ModelInfo
    target: Any
    draft: Any | None
    tokenizer: Any
    eos: frozenset[int]


def resolve(source: str) -> Path:
    """The local directory of ``embedded:…``, of a directory, or of a Hugging Face repository (fetched if need be).

    Raises:
        ModelLoadFailed: there is nothing under that name.
    """
    if source.startswith(EMBEDDED):
        try:
            return embedded.path(source.removeprefix(EMBEDDED))
        except ValueError as exc:
            raise ModelLoadFailed(str(exc)) from exc
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise ModelLoadFailed(
            f"{source}: no such directory, and not the name of a Hugging Face repository (owner/name)"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=list(FILES)))
    except Exception as exc:  # the hub client raises a dozen unrelated classes
        raise ModelLoadFailed(f"{source}: could not be fetched: {exc}") from exc


def check_safe(directory: Path) -> None:
    """Refuse a model that would run code or read outside its directory, before anything of it is loaded.

    Raises:
        ModelLoadFailed: naming the file and what is wrong with it.
    """
    root = directory.resolve()
    # A Hugging Face snapshot is links into its repository's blobs, two levels up.
    allowed = root.parents[1] if root.parent.name == "snapshots" else root
    for file in sorted(directory.iterdir()):
        if not file.resolve().is_relative_to(allowed):
            raise ModelLoadFailed(f"{file}: links outside of the model's directory")
    for name in ("config.json", "tokenizer_config.json"):
        file = directory / name
        if not file.exists():
            if name == "config.json":
                raise ModelLoadFailed(f"{directory}: has no config.json")
            continue
        try:
            config = json.loads(file.read_text("utf-8"))
        except (ValueError, OSError) as exc:
            raise ModelLoadFailed(f"{file}: {exc}") from exc
        for key in UNSAFE_KEYS:
            if key in config:
                raise ModelLoadFailed(f"{file}: {key!r} would run code that comes with the model; it is never executed")
    if not list(directory.glob("model*.safetensors")):
        raise ModelLoadFailed(f"{directory}: has no model*.safetensors; no other format is loaded")


def load_pair(spec: ModelSpec) -> Pair:
    """Load target and draft as one unit.

    On a CPU the weights become fp32, quantised ones too: it is the only type that the CPU's BLAS multiplies fast.

    Raises:
        ModelLoadFailed: either cannot be loaded, or the draft's tokens are not the target's.
    """
    started_s = time.monotonic()
    target, config, tokenizer = _load(resolve(spec.target))
    draft, draft_config, draft_tokenizer = _load(resolve(spec.draft)) if spec.draft is not None else (None, {}, None)
    eos = frozenset(int(token) for token in tokenizer.eos_token_ids if token is not None)
    info = ModelInfo(
        name=spec.name,
        target=spec.target,
        draft=spec.draft,
        context_tokens=int(config.get("max_position_embeddings") or DEFAULT_CONTEXT_TOKENS),
        vocab_size=len(tokenizer.get_vocab()),
        target_bytes=_bytes(target),
        draft_bytes=_bytes(draft) if draft is not None else 0,
        load_s=round(time.monotonic() - started_s, 3),
        same_vocabulary=draft_tokenizer is not None and _same_vocabulary(tokenizer, draft_tokenizer),
        same_template=draft_tokenizer is not None and tokenizer.chat_template == draft_tokenizer.chat_template,
        cache_trimmable=_trimmable(target) and (draft is None or _trimmable(draft)),
        target_family=str(config.get("model_type", "")),
        draft_family=str(draft_config.get("model_type", "")),
    )
    return Pair(info, target, draft, tokenizer, eos)


def _load(directory: Path) -> tuple[Any, dict[str, Any], Any]:
    check_safe(directory)
    try:
        model, config = load_model(directory)
        tokenizer = load_tokenizer(directory, eos_token_ids=config.get("eos_token_id"))
    except Exception as exc:  # whatever a malformed file makes the loaders raise
        raise ModelLoadFailed(f"{directory.name}: {type(exc).__name__}: {exc}") from exc
    if mx.default_device() == mx.Device(mx.cpu):
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model, config, tokenizer


def _bytes(model: nn.Module) -> int:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))


def _same_vocabulary(one: Any, other: Any) -> bool:
    """The same tokens under the same ids, special ones included."""
    return bool(one.get_vocab() == other.get_vocab() and one.all_special_ids == other.all_special_ids)


def _trimmable(model: nn.Module) -> bool:
    return bool(can_trim_prompt_cache(make_prompt_cache(model)))
