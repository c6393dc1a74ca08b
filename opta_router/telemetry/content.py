"""Prompt and answer as attributes, where an operator asks for it: ``telemetry.record_content``.

The GenAI conventions have them as structured messages, and as JSON text on spans that cannot hold structure; Python's
cannot. Text beyond a bound is cut, of a prompt its oldest first, so that a trace that waits to be sent is bounded, too.
"""

from __future__ import annotations

from typing import Final

import msgspec

from lanes import wire
from opta_router.request import GenerationRequest
from opta_router.telemetry import names
from opta_router.telemetry.facts import Attributes
from policies.classify import Classification

MAX_CONTENT_CHARS: Final = 16 * 1024
"""Of all text of a prompt, and of an answer."""

CUT: Final = "…"


class TextPart(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """A part of a message."""

    content: str


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of the conventions."""

    role: str
    parts: tuple[TextPart, ...]
    name: str | None = None
    finish_reason: str | None = None


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Text of a request, bounded; each tuple may be empty."""

    asked: tuple[Said, ...] = ()
    system: tuple[TextPart, ...] = ()
    answered: tuple[Said, ...] = ()

    def attributes(self) -> Attributes:
        """As they stand on the CLIENT span."""
        of_all = {
            names.INPUT_MESSAGES: self.asked,
            names.SYSTEM_INSTRUCTIONS: self.system,
            names.OUTPUT_MESSAGES: self.answered,
        }
        return {name: msgspec.json.encode(said).decode() for name, said in of_all.items() if said}


def of_prompt(request: GenerationRequest, verdict: Classification) -> Content:
    """What was asked. A preset's system prompt is apart, as it is no message of the client's; token ids are no text."""
    system = verdict.preset.system if verdict.preset is not None else None
    instructions = (TextPart(_cut(system, MAX_CONTENT_CHARS)),) if system else ()
    match request.prompt:
        case wire.ChatPrompt(messages):
            return Content(asked=_bounded(messages), system=instructions)
        case wire.TextPrompt(text):
            return Content(asked=_bounded((wire.ChatMessage("user", text),)), system=instructions)
        case wire.TokenPrompt():
            return Content(system=instructions)


def of_answer(text: str, finish_reason: str) -> Content:
    """What was answered."""
    part = TextPart(_cut(text, MAX_CONTENT_CHARS))
    return Content(answered=(Said("assistant", (part,), finish_reason=finish_reason),))


def _bounded(messages: tuple[wire.ChatMessage, ...]) -> tuple[Said, ...]:
    left, found = MAX_CONTENT_CHARS, list[Said]()
    for message in reversed(messages):
        if left <= 0:
            break
        found.append(Said(message.role, (TextPart(_cut(message.content, left)),), message.name))
        left -= len(message.content)
    return tuple(reversed(found))


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[:chars] + CUT
