"""From token ids to text that can be sent: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers.decoders import DecodeStream


class Piece(NamedTuple):
    """What a push brought: how many of its tokens belong to the answer, their text, and if a stop string ended it."""

    kept: int
    text: str
    stopped: bool


class TextStream:
    """Incremental text of one answer.

    Special tokens have no text. A character's bytes may be spread over tokens: nothing is given out until it is whole.
    Text that may be the beginning of a stop string is held back until it is known; a stop string itself, and whatever
    follows it, is never given out.

    Args:
        tokenizer: an mlx-lm ``TokenizerWrapper``, or anything with its ``detokenizer`` property.
        stop: the stop strings, none of them empty.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self._decoder = _decoder(tokenizer)
        self._stop = stop
        self._held = ""

    @property
    def held_chars(self) -> int:
        """Characters that are known and not given out."""
        return len(self._held)

    def push(self, token_ids: tuple[int, ...]) -> Piece:
        """Add tokens; see :class:`Piece`."""
        out = []
        for count, token in enumerate(token_ids, start=1):
            self._held += self._decoder.add(token)
            at = self._stop_at()
            if at is not None:
                out.append(self._held[:at])
                self._held = ""
                return Piece(count, "".join(out), stopped=True)
            safe = len(self._held) - self._held_back()
            out.append(self._held[:safe])
            self._held = self._held[safe:]
        return Piece(len(token_ids), "".join(out), stopped=False)

    def finish(self) -> str:
        """What was held back, now that no more tokens come; an incomplete character becomes U+FFFD."""
        text, self._held = self._held + self._decoder.finish(), ""
        at = min((i for s in self._stop if (i := text.find(s)) >= 0), default=None)
        return text if at is None else text[:at]

    def _stop_at(self) -> int | None:
        return min((i for s in self._stop if (i := self._held.find(s)) >= 0), default=None)

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest


class _FastDecoder:
    """The tokenizers library's own incremental decoder."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        text: str | None = self._stream.step(self._tokenizer, token)
        if text is None:
            self._pending.append(token)
            return ""
        self._pending.clear()
        return text

    def finish(self) -> str:
        text: str = self._tokenizer.decode(self._pending, skip_special_tokens=True)
        self._pending.clear()
        return text


class _SlowDecoder:
    """For tokenizers that are not built on the tokenizers library: mlx-lm's streaming detokenizer."""

    def __init__(self, detokenizer: Any) -> None:
        self._detokenizer = detokenizer
        self._detokenizer.reset()

    def add(self, token: int) -> str:
        self._detokenizer.add_token(token)
        segment: str = self._detokenizer.last_segment
        return segment

    def finish(self) -> str:
        self._detokenizer.finalize()
        segment: str = self._detokenizer.last_segment
        return segment


def _decoder(tokenizer: Any) -> _FastDecoder | _SlowDecoder:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _FastDecoder(backend) if backend is not None else _SlowDecoder(tokenizer.detokenizer)
