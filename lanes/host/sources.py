"""Where a model's files are: with the package, in a directory, or in a Hugging Face repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lanes import embedded
from lanes.errors import ModelLoadFailed

EMBEDDED: Final = "embedded:"

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
        from lanes.host.hub import fetched  # noqa: PLC0415 - takes half a second, which other sources need not spend

        return fetched(repository, revision or None, on_bytes)
    except ModelLoadFailed:
        raise
    except Exception as exc:  # the hub client raises a dozen unrelated classes
        raise ModelLoadFailed(f"{source}: could not be fetched: {_first_lines(exc)}") from exc


def _first_lines(exc: Exception) -> str:
    """The hub client's errors end with advice on several lines."""
    said = " ".join(line.strip() for line in str(exc).splitlines() if line.strip())
    cause = f" ({os.strerror(exc.errno)})" if isinstance(exc, OSError) and exc.errno and not said else ""
    return f"{type(exc).__name__}: {said[:400]}{cause}"
