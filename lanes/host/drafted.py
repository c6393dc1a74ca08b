"""Which of an answer's text the draft proposed and the target accepted. Kept only for a request that asks."""

from __future__ import annotations

from collections import deque

from lanes.host.text import Piece, TextStream
from lanes.wire import Span


class DraftedText:
    """Follows a text from its tokens to where it is given out, which may be later: see :class:`TextStream`.

    A character belongs to the token that completed it. What an earlier host held back counts as not drafted.

    Args:
        text: the answer's; from now on tokens are pushed here.
    """

    def __init__(self, text: TextStream) -> None:
        self._text = text
        # Characters that were not taken yet, and whether they were drafted.
        self._runs: deque[tuple[int, bool]] = deque([(text.held_chars, False)])

    def push(self, token_ids: tuple[int, ...], accepted: int) -> Piece:
        """:meth:`TextStream.push` of tokens of which the first ``accepted`` were drafted."""
        out: list[str] = []
        for count, token in enumerate(token_ids, start=1):
            held = self._text.held_chars
            piece = self._text.push((token,))
            out.append(piece.text)
            # At a stop string less may come out than was held.
            self._runs.append((max(len(piece.text) + self._text.held_chars - held, 0), count <= accepted))
            if piece.stopped:
                return Piece(count, "".join(out), stopped=True)
        return Piece(len(token_ids), "".join(out), stopped=False)

    def take(self, chars: int) -> tuple[Span, ...]:
        """The drafted pieces of the next ``chars`` characters; neighbours are one piece."""
        spans: list[Span] = []
        at = 0
        while at < chars and self._runs:
            size, drafted = self._runs.popleft()
            end = min(at + size, chars)
            if size > chars - at:
                self._runs.appendleft((size - (chars - at), drafted))
            if drafted and end > at:
                joined = bool(spans) and spans[-1][1] == at
                spans[-1:] = [(spans[-1][0], end)] if joined else [*spans[-1:], (at, end)]
            at = end
        return tuple(spans)
