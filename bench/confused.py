"""A draft that is as sure of itself as any and always wrong: the embedded one with its tokens' rows shuffled.

``python -m bench.confused DIRECTORY`` makes it, in a process of its own for who measures.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from lanes import embedded

SEED: Final = 0


def confuse(directory: Path) -> Path:
    """Make the draft in ``directory``, which must not exist."""
    import mlx.core as mx  # noqa: PLC0415

    shutil.copytree(embedded.path("draft"), directory)
    file = directory / "model.safetensors"
    weights = mx.load(str(file))
    if not isinstance(weights, dict):
        raise TypeError(f"{file}: not a file of named arrays")
    rows = {name: array for name, array in weights.items() if name.startswith("model.embed_tokens.")}
    order = mx.random.permutation(next(iter(rows.values())).shape[0], key=mx.random.key(SEED))
    shuffled = {name: array[order] for name, array in rows.items()}
    mx.eval(weights, shuffled)
    mx.save_safetensors(str(file), {**weights, **shuffled}, {"format": "mlx"})
    return directory


def straighten(directory: Path) -> None:
    """Put the embedded draft's own weights in the place of the shuffled ones."""
    shutil.copy(embedded.path("draft") / "model.safetensors", directory)


if __name__ == "__main__":
    confuse(Path(sys.argv[1]))
