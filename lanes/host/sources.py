"""Where a model's files are: with the package, in a directory, or in a Hugging Face repository."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import DryRunError
from tqdm.auto import tqdm

from lanes import embedded
from lanes.errors import ModelLoadFailed
from lanes.residency import written_bytes

EMBEDDED: Final = "embedded:"
FILES: Final = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
"""What is fetched of a Hugging Face repository: data only, never code."""

OnBytes = Callable[[int, int], None]
"""Called with the bytes that have come, and how many there will be."""


def resolve(source: str, on_bytes: OnBytes = lambda done, total: None) -> Path:
    """The local directory of ``embedded:…``, of a directory, or of a Hugging Face repository, ``owner/name`` or
    ``owner/name@revision``. A repository is fetched if need be, from where an earlier try was cut off.

    Raises:
        ModelLoadFailed: there is nothing under that name, or no room for it.
    """
    if source.startswith(EMBEDDED):
        try:
            return embedded.path(source.removeprefix(EMBEDDED))
        except ValueError as exc:
            raise ModelLoadFailed(str(exc)) from exc
    local = Path(source).expanduser()
    if local.is_dir():
        return local
    repository, _, revision = source.partition("@")
    if source.startswith((".", "/", "~")) or repository.count("/") != 1:
        raise ModelLoadFailed(
            f"{source}: no such directory, and not the name of a Hugging Face repository (owner/name)"
        )
    try:
        return _fetched(repository, revision or None, on_bytes)
    except ModelLoadFailed:
        raise
    except Exception as exc:  # the hub client raises a dozen unrelated classes
        raise ModelLoadFailed(f"{source}: could not be fetched: {_first_lines(exc)}") from exc


def _fetched(repository: str, revision: str | None, on_bytes: OnBytes) -> Path:
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


def _first_lines(exc: Exception) -> str:
    """The hub client's errors end with advice on several lines."""
    said = " ".join(line.strip() for line in str(exc).splitlines() if line.strip())
    cause = f" ({os.strerror(exc.errno)})" if isinstance(exc, OSError) and exc.errno and not said else ""
    return f"{type(exc).__name__}: {said[:400]}{cause}"
