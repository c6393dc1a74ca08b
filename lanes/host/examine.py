"""Looking at a pair without touching the device: its files, its tokenizers, and whether these are the same.

Runs on a worker thread while the device computes for others.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from lanes.errors import ModelLoadFailed
from lanes.host.files import checked_config
from lanes.host.sources import OnBytes, resolve
from lanes.wire import ModelSpec

_one_at_a_time = threading.Lock()
"""Of the examinations, not of the downloads: transformers imports its parts on the thread that first needs them."""


class Part(msgspec.Struct, frozen=True):
    """A target, or a draft: where it is, what its config.json says, and mlx-lm's wrapper of its tokenizer."""

    source: str
    directory: Path
    config: dict[str, Any]
    tokenizer: Any

    @property
    def family(self) -> str:
        """The architecture, as its config names it."""
        return str(self.config.get("model_type", ""))


class Examined(msgspec.Struct, frozen=True):
    """A pair that is whole on the disk."""

    spec: ModelSpec
    target: Part
    draft: Part | None = None
    same_vocabulary: bool = False
    same_template: bool = False


def examine(spec: ModelSpec, on_bytes: OnBytes = lambda done, total: None) -> Examined:
    """Fetch a pair if need be, and look at it. Blocks for as long as that takes.

    Raises:
        ModelLoadFailed: it cannot be loaded as it is.
    """
    sources = [spec.target] if spec.draft is None else [spec.target, spec.draft]
    directories = [resolve(source, on_bytes) for source in sources]
    with _one_at_a_time:
        target, *drafts = [_part(*found) for found in zip(sources, directories, strict=True)]
    if not drafts:
        return Examined(spec, target)
    one, other = target.tokenizer, drafts[0].tokenizer
    return Examined(
        spec,
        target,
        drafts[0],
        same_vocabulary=one.get_vocab() == other.get_vocab() and one.all_special_ids == other.all_special_ids,
        same_template=one.chat_template == other.chat_template,
    )


def _part(source: str, directory: Path) -> Part:
    from mlx_lm.utils import load_tokenizer  # noqa: PLC0415 - takes seconds, which a host of no such model need not spend

    config = checked_config(directory)
    try:
        tokenizer = load_tokenizer(directory, eos_token_ids=config.get("eos_token_id"))
        tokenizer.get_vocab()
    except Exception as exc:  # whatever a malformed file makes the loader raise
        raise ModelLoadFailed(f"{directory}: its tokenizer cannot be loaded: {type(exc).__name__}: {exc}") from exc
    return Part(source, directory, config, tokenizer)
