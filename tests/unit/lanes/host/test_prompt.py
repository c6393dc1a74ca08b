"""Which prompts are encoded at once, and what is said of those that a template rejects."""

import logging

import pytest

from lanes import wire
from lanes.errors import RequestRefused
from lanes.host.prompt import SHORT_CHARS, PromptEncoder, is_short


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


class Rejecting:
    """A tokenizer whose template raises `error`."""

    chat_template = "{{ raise_exception('roles must alternate') }}"

    def __init__(self, error):
        self._error = error

    def apply_chat_template(self, messages, **_):
        raise self._error


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (ValueError("roles must alternate"), "ValueError: roles must alternate"),
        (ValueError("secret must alternate"), "ValueError"),
        (KeyError("secret"), "KeyError"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_templates_error_is_logged_without_a_prompts_words_and_told_to_nobody(caplog, error, logged):
    with caplog.at_level(logging.WARNING), pytest.raises(RequestRefused) as refused:
        PromptEncoder(Rejecting(error), 100).encode(chat("secret"))
    assert refused.value.code is wire.FailureCode.INVALID_PROMPT
    assert "chat template rejects these messages" in str(refused.value)
    assert not any(word in str(refused.value) for word in ("secret", "alternate"))
    (record,) = caplog.records
    assert record.getMessage() == f"a chat template rejected 1 messages: {logged}"
