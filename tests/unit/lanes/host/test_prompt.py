"""Which prompts are encoded at once."""

import pytest

from lanes import wire
from lanes.host.prompt import SHORT_CHARS, is_short


def chat(*contents):
    return wire.ChatPrompt(tuple(wire.ChatMessage("user", content) for content in contents))


@pytest.mark.parametrize(
    "prompt",
    [chat("x"), wire.TextPrompt("x" * SHORT_CHARS), wire.TokenPrompt((1,) * SHORT_CHARS)],
    ids=lambda prompt: type(prompt).__name__,
)
def test_a_short_prompt_needs_no_thread(prompt):
    assert is_short(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        chat("x" * SHORT_CHARS, "x"),
        chat(*[""] * SHORT_CHARS),  # a template renders empty messages, too
        wire.TextPrompt("x" * (SHORT_CHARS + 1)),
        wire.TokenPrompt((1,) * (SHORT_CHARS + 1)),
    ],
    ids=["chat", "empty turns", "text", "tokens"],
)
def test_a_long_prompt_goes_to_a_thread(prompt):
    assert not is_short(prompt)
