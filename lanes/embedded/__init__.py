"""The pair that ships with the package, ``opta-tiny``: a small target and a smaller draft that complete Python code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

_ROOT: Final = Path(__file__).parent
PARTS: Final = ("target", "draft")


class HeldOutPrompt(NamedTuple):
    """The beginning of a function that neither model, nor the tokenizer, was trained on."""

    id: str
    prompt: str


def path(part: str) -> Path:
    """The directory of ``target`` or ``draft``, loadable with ``mlx_lm.load``.

    Raises:
        ValueError: there is no such part.
    """
    if part not in PARTS:
        raise ValueError(f"embedded:{part} does not exist; allowed: {', '.join(f'embedded:{p}' for p in PARTS)}")
    return _ROOT / part


def held_out_prompts() -> list[HeldOutPrompt]:
    """Prompts from held-out modules of the Python standard library (PSF licence), in a fixed order."""
    lines = (_ROOT / "prompts.jsonl").read_text("utf-8").splitlines()
    return [HeldOutPrompt(**json.loads(line)) for line in lines]
