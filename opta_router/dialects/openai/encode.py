"""Answers in OpenAI's shapes: whole bodies, and chunks of a stream."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from lanes import wire
from opta_router.dialects.framing import sse
from opta_router.dialects.openai.errors import render_error
from opta_router.errors import RouterError
from opta_router.request import Ending, Operation, OptaReport

_encoder = msgspec.json.Encoder()
_DONE: Final = sse(b"[DONE]")
# Stands where a chunk's text goes; JSON writes it so that it can be nothing else.
_MARK: Final = "\x00"
_MARK_JSON: Final = _encoder.encode(_MARK)


class AnswerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says of itself in each of its parts. ``created`` in seconds of the Unix epoch."""

    operation: Operation
    id: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | None = None
    include_usage: bool = False


class Drafted(msgspec.Struct, frozen=True):
    """A text chunk's ``opta``: the pieces of its text that the draft proposed, by their first and last characters.

    ``[[0, 5]]`` are the first five characters (code points, so that no language's idea of a string matters).
    """

    drafted: tuple[wire.Span, ...]


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class _CompletionDetails(msgspec.Struct, frozen=True):
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """OpenAI's usage. Our rejected draft tokens are not part of ``completion_tokens``."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails


class _ChatMessage(msgspec.Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class _ChatChoice(msgspec.Struct, frozen=True):
    message: _ChatMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class _ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class _ChatChunkChoice(msgspec.Struct, frozen=True):
    delta: _ChatDelta
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class _TextChoice(msgspec.Struct, frozen=True):
    text: str
    finish_reason: str | None
    index: int = 0
    logprobs: None = None


_Choice = _ChatChoice | _ChatChunkChoice | _TextChoice


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: tuple[_Choice, ...]
    service_tier: str | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET
    opta: OptaReport | Drafted | UnsetType = UNSET


def usage_of(finished: wire.Finished) -> Usage:
    """The end of an answer as OpenAI counts it."""
    counters = finished.speculative or wire.SpecCounters()
    return Usage(
        finished.prompt_tokens,
        finished.completion_tokens,
        finished.prompt_tokens + finished.completion_tokens,
        _PromptDetails(finished.cached_tokens),
        _CompletionDetails(counters.accepted, counters.rejected),
    )


def encode(facts: AnswerFacts, text: str, ending: Ending) -> bytes:
    """A whole, non-streaming body."""
    reason = ending.finished.reason
    choice = _ChatChoice(_ChatMessage(text), reason) if facts.operation == "chat" else _TextChoice(text, reason)
    kind = "chat.completion" if facts.operation == "chat" else "text_completion"
    return _encoder.encode(_body(facts, kind, choice, usage=usage_of(ending.finished), opta=ending.opta))


class StreamEncoder:
    """One stream: ``start``, any number of ``delta``, then ``finish`` or ``error``; each returns bytes to send.

    What all text chunks have in common is encoded once; a chunk costs the encoding of its text.
    """

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts
        self._usage: UnsetType | None = None if facts.include_usage else UNSET
        self._before, self._after = sse(self._chunk(content=_MARK)).split(_MARK_JSON)

    def start(self) -> bytes:
        """What a stream begins with: for a chat, who speaks."""
        return sse(self._chunk(role="assistant", content="")) if self._facts.operation == "chat" else b""

    def delta(self, text: str, drafted: tuple[wire.Span, ...] = ()) -> bytes:
        """More of the answer."""
        if drafted:
            return sse(self._chunk(content=text, opta=Drafted(drafted)))
        return self._before + _encoder.encode(text) + self._after

    def finish(self, ending: Ending) -> bytes:
        """The finishing chunk, the usage if it was asked for, and the end of the stream."""
        events = sse(self._chunk(finish_reason=ending.finished.reason, opta=ending.opta))
        if self._facts.include_usage:
            events += sse(_encoder.encode(_body(self._facts, self._kind, usage=usage_of(ending.finished))))
        return events + _DONE

    def error(self, error: RouterError) -> bytes:
        """An in-band error. No ``[DONE]`` follows: a client that knows no errors must not take it for the end."""
        return sse(render_error(error).body)

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self._facts.operation == "chat" else "text_completion"

    def _chunk(
        self,
        *,
        role: str | None = None,
        content: str | None = None,
        finish_reason: str | None = None,
        opta: OptaReport | Drafted | UnsetType = UNSET,
    ) -> bytes:
        choice: _Choice
        if self._facts.operation == "chat":
            choice = _ChatChunkChoice(_ChatDelta(role, content), finish_reason)
        else:
            choice = _TextChoice(content or "", finish_reason)
        return _encoder.encode(_body(self._facts, self._kind, choice, usage=self._usage, opta=opta))


def _body(
    facts: AnswerFacts,
    kind: str,
    *choices: _Choice,
    usage: Usage | UnsetType | None = UNSET,
    opta: OptaReport | Drafted | UnsetType = UNSET,
) -> _Body:
    return _Body(
        id=facts.id,
        object=kind,
        created=facts.created,
        model=facts.model,
        system_fingerprint=facts.system_fingerprint,
        choices=choices,
        service_tier=UNSET if facts.service_tier is None else facts.service_tier,
        usage=usage,
        opta=opta,
    )
