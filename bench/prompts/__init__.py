"""The prompts that benchmarks share: four classes of text that people ask models for, a YAML file each.

Short, because the embedded pair is small: at most 300 tokens each, and meant for answers of about 128. It completes
Python code and was never taught to copy or to chat, so what it answers to most of them is fluent nonsense; another pair
may do better. What costs time is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import msgspec
import yaml

PromptClass: TypeAlias = Literal["code", "editing", "chat", "json"]
CLASSES: Final[tuple[PromptClass, ...]] = get_args(PromptClass)

_HERE: Final = Path(__file__).parent


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Either ``text``, to be completed as it stands, or ``messages`` for the model's chat template.

    ``answer``, where there is one, is what a model that does as it is asked goes on with.
    """

    id: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    answer: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.messages):
            raise ValueError(f"prompt {self.id}: either text or messages")

    def chat(self) -> list[dict[str, str]]:
        """The messages as chat templates and APIs take them."""
        return [msgspec.structs.asdict(message) for message in self.messages]


def load(classes: Sequence[PromptClass] = CLASSES) -> dict[PromptClass, tuple[Prompt, ...]]:
    """The prompts of each class, in the order of its file."""
    return {name: _read(_HERE / f"{name}.yaml") for name in classes}


def _read(file: Path) -> tuple[Prompt, ...]:
    return msgspec.convert(yaml.safe_load(file.read_text("utf-8")), tuple[Prompt, ...])
