"""A client that notes when each piece of a streamed completion arrived."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    delta: _Delta = _Delta()

    @property
    def piece(self) -> str:
        """Text of a completion, or of a chat."""
        return self.text or self.delta.content or ""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    completion_tokens: int
    prompt_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    opta: dict[str, Any] | None = None
    error: Any = None


class AnswerFailedError(RuntimeError):
    """The server began an answer, and then said that it cannot go on."""


class Completion(msgspec.Struct):
    """One streamed answer. Times are seconds of ``time.perf_counter``; ``tokens`` is the server's own count.

    ``opta`` is what our server says of it.
    The prompt's tokens, too, are as the server counts them: ``cached_tokens`` of them were known already.
    """

    asked_s: float
    pieces: list[tuple[float, str]] = []
    ended_s: float | None = None
    tokens: int | None = None
    opta: dict[str, Any] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0

    @property
    def ttft_s(self) -> float | None:
        """From asking to the first text; None if none came."""
        return self.pieces[0][0] - self.asked_s if self.pieces else None

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(text for _, text in self.pieces)

    def text_between(self, start_s: float, end_s: float) -> str:
        """What arrived in that time."""
        return "".join(text for at_s, text in self.pieces if start_s <= at_s < end_s)


_decoder = msgspec.json.Decoder(_Chunk)


async def complete(
    client: httpx.AsyncClient, body: Mapping[str, Any], headers: Mapping[str, str], into: Completion
) -> None:
    """Stream one answer into ``into``, which holds what has come even if this is cancelled.

    A body with ``messages`` is a chat's, any other goes to ``/v1/completions``.

    Raises:
        httpx.HTTPError: it was not answered with 200, or the connection broke.
        AnswerFailedError: an error came in the stream.
    """
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    async with client.stream("POST", path, json={**body, "stream": True}, headers=headers) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = _decoder.decode(line.removeprefix("data: "))
            if chunk.error is not None:
                raise AnswerFailedError(str(chunk.error))
            if chunk.usage is not None:
                into.tokens = chunk.usage.completion_tokens
                into.prompt_tokens = chunk.usage.prompt_tokens
                details = chunk.usage.prompt_tokens_details
                into.cached_tokens = details.cached_tokens if details is not None else 0
            into.opta = chunk.opta or into.opta
            if chunk.choices and chunk.choices[0].piece:
                into.pieces.append((time.perf_counter(), chunk.choices[0].piece))
    into.ended_s = time.perf_counter()
