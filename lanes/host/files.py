"""Whether a model's files are safe, whole and what they say they are, before any of them is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from lanes.errors import ModelLoadFailed
from lanes.residency import written_bytes

UNSAFE_KEYS: Final = ("model_file", "auto_map")
"""Keys of config.json and tokenizer_config.json that make a loader run the model's own code (CVE-2026-5843)."""

WEIGHTS: Final = "model*.safetensors"


def checked_config(directory: Path) -> dict[str, Any]:
    """The model's config.json, when nothing is wrong with its files.

    Raises:
        ModelLoadFailed: the model would run code or read outside its directory, or a file is missing, cut off or
            damaged; naming the file and what is wrong with it.
    """
    _refuse_links_outside(directory)
    if not (directory / "config.json").exists():
        raise ModelLoadFailed(f"{directory}: has no config.json")
    config = _json(directory / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        file = directory / name
        for key in UNSAFE_KEYS:
            if file.exists() and key in _json(file):
                raise ModelLoadFailed(f"{file}: {key!r} would run code that comes with the model; it is never executed")
    check_weights(directory)
    return config


def check_weights(directory: Path) -> None:
    """Look at every header: its tensors must lie in the file without gap, overlap or end beyond it.

    Raises:
        ModelLoadFailed: naming the file.
    """
    files = sorted(directory.glob(WEIGHTS))
    if not files:
        raise ModelLoadFailed(f"{directory}: has no {WEIGHTS}; no other format is loaded")
    names: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="numpy") as weights:
                names |= set(weights.keys())
        except (SafetensorError, OSError) as exc:
            size = written_bytes(file.stat().st_size)
            raise ModelLoadFailed(f"{file}: cut off or damaged ({size}): {exc}") from exc
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return
    shards: dict[str, str] = _json(index).get("weight_map", {})
    missing = sorted(set(shards.values()) - {file.name for file in files})
    if missing:
        raise ModelLoadFailed(
            f"{directory}: {len(missing)} of its weight files are not there: {', '.join(missing[:3])}"
        )
    lost = sorted(shards.keys() - names)
    if lost:
        raise ModelLoadFailed(f"{directory}: no file has the weights {', '.join(lost[:3])}, which its index names")


def _refuse_links_outside(directory: Path) -> None:
    root = directory.resolve()
    # A Hugging Face snapshot is links into its repository's blobs, two levels up.
    allowed = root.parents[1] if root.parent.name == "snapshots" else root
    for file in sorted(directory.iterdir()):
        if not file.resolve().is_relative_to(allowed):
            raise ModelLoadFailed(f"{file}: links outside of the model's directory")


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as exc:
        raise ModelLoadFailed(f"{file}: {exc}") from exc
    if not isinstance(data, dict):
        raise ModelLoadFailed(f"{file}: not a JSON object")
    return data
