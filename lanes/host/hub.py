"""Fetching a model's files from the Hugging Face hub. Importing its client takes half a second."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import DryRunError
from tqdm.auto import tqdm

from lanes.errors import ModelLoadFailed
from lanes.host.sources import OnBytes
from lanes.residency import written_bytes

FILES: Final = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
"""What is fetched of a repository: data only, never code."""


def fetched(repository: str, revision: str | None, on_bytes: OnBytes) -> Path:
    """The local directory of a repository's files, fetched if need be, from where an earlier try was cut off.

    Raises:
        ModelLoadFailed: there is no room for it. The hub client's own errors come through.
    """
    wanted = list(FILES)
    uncounted = _counter(lambda done, total: None, 0)
    try:
        files = snapshot_download(
            repository, revision=revision, allow_patterns=wanted, dry_run=True, tqdm_class=uncounted
        )
    except DryRunError:
        files = []  # offline: what is there must do, and the client says so if it does not
    missing_bytes = sum(file.file_size or 0 for file in files if file.will_download)
    if missing_bytes:
        folder = Path(constants.HF_HUB_CACHE)
        free_bytes = shutil.disk_usage(_existing(folder)).free
        if missing_bytes > free_bytes:
            raise ModelLoadFailed(
                f"{repository}: {written_bytes(missing_bytes)} are to be fetched to {folder}, which has room for "
                f"{written_bytes(free_bytes)}"
            )
    counter = _counter(on_bytes, missing_bytes)
    return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted, tqdm_class=counter))


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _counter(on_bytes: OnBytes, total_bytes: int) -> type[tqdm[Any]]:
    """A progress bar that is never drawn: the hub client counts through it the bytes that it has written."""
    done_bytes = 0

    class Counter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            self._counts = str(settings.get("desc", "")).startswith("Reconstructing")
            super().__init__(*args, **{**settings, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal done_bytes
            if self._counts:
                done_bytes += int(n or 0)
                on_bytes(done_bytes, max(total_bytes, done_bytes))

    return Counter
