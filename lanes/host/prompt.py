"""From a request's prompt to token ids."""

from __future__ import annotations

import logging
from typing import Any, Final

from lanes import wire
from lanes.errors import RequestRefused

log = logging.getLogger(__name__)

SHORT_CHARS: Final = 1000


def is_short(prompt: wire.Prompt) -> bool:
    """Whether encoding it takes no longer than the way to a worker thread and back.

    The embedded pair's tokenizer takes 0.2 ms for a thousand characters.
    """
    match prompt:
        case wire.ChatPrompt(messages):
            return sum(len(message.content) for message in messages) + 10 * len(messages) <= SHORT_CHARS
        case wire.TextPrompt(text):
            return len(text) <= SHORT_CHARS
        case wire.TokenPrompt(token_ids):
            return len(token_ids) <= SHORT_CHARS


class PromptEncoder:
    """Tokenises prompts for one model. Called on any thread.

    Args:
        tokenizer: an mlx-lm ``TokenizerWrapper``, or the scripted engine's.
        context_tokens: prompt and answer together.
    """

    def __init__(self, tokenizer: Any, context_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens

    def encode(self, prompt: wire.Prompt) -> tuple[int, ...]:
        """Token ids that leave room for at least one token of an answer.

        Raises:
            RequestRefused: the prompt is empty, too long, not of this vocabulary, or the template rejects it.
        """
        token_ids = self._token_ids(prompt)
        if not token_ids:
            raise RequestRefused(wire.FailureCode.INVALID_PROMPT, "the prompt has no tokens")
        if len(token_ids) >= self.context_tokens:
            raise RequestRefused(
                wire.FailureCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {len(token_ids)} tokens; this model's context holds {self.context_tokens}, "
                "the answer's tokens included",
            )
        return tuple(token_ids)

    def _token_ids(self, prompt: wire.Prompt) -> list[int]:
        match prompt:
            case wire.ChatPrompt(messages):
                return self._chat(messages)
            case wire.TextPrompt(text):
                return list(self.tokenizer.encode(text))
            case wire.TokenPrompt(token_ids):
                return self._checked(list(token_ids))

    def _chat(self, messages: tuple[wire.ChatMessage, ...]) -> list[int]:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return list(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True))
        except Exception as exc:  # a template raises whatever it likes about the messages it is given
            log.warning("a chat template rejected %d messages: %s", len(turns), self._explained(exc))
            message = "the model's chat template rejects these messages; the log says why: mostly their roles or order"
            raise RequestRefused(wire.FailureCode.INVALID_PROMPT, message) from exc

    def _explained(self, exc: Exception) -> str:
        """The error for the log: its text only where the template has it word for word, as it may repeat a prompt."""
        template, text = getattr(self.tokenizer, "chat_template", None), str(exc)
        kind = type(exc).__name__
        return f"{kind}: {text}" if isinstance(template, str) and text and text in template else kind

    def _checked(self, token_ids: list[int]) -> list[int]:
        for position, token in enumerate(token_ids):
            if not 0 <= token < self.tokenizer.vocab_size:
                raise RequestRefused(
                    wire.FailureCode.INVALID_PROMPT,
                    f"prompt[{position}] is {token}; token ids are 0 to {self.tokenizer.vocab_size - 1}",
                )
        return token_ids
