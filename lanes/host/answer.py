"""One answer in the making: from what engines emit to the events that the router receives."""

from __future__ import annotations

from typing import Any

from lanes import wire
from lanes.engines.base import Emission
from lanes.errors import RequestRefused
from lanes.host.drafted import DraftedText
from lanes.host.text import Piece, TextStream


class Answer:
    """Counts tokens and drafts of one request, makes its text, and knows when it has ended.

    Raises:
        RequestRefused: what earlier hosts gave of the answer is not what this tokenizer makes of its tokens, so that
            nobody could say how it goes on.
    """

    def __init__(self, submit: wire.Submit, prompt_tokens: int, tokenizer: Any) -> None:
        self._request_id = submit.request_id
        self._prompt_tokens = prompt_tokens
        self._text = TextStream(tokenizer, submit.stop)
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._counters: wire.SpecCounters | None = None
        self.ended = False
        self._resume(submit.emitted)
        self._drafted = DraftedText(self._text) if submit.mark_drafted else None

    def _resume(self, emitted: wire.Emitted) -> None:
        given = self._text.push(emitted.token_ids)
        if given.stopped or len(given.text) != emitted.text_chars:
            raise RequestRefused(
                wire.FailureCode.ENGINE_ERROR,
                f"the answer cannot be resumed: {emitted.text_chars} characters of it were given, "
                f"its {len(emitted.token_ids)} tokens make {len(given.text)}",
            )
        self._completion_tokens = len(emitted.token_ids)
        self._counters = emitted.speculative

    def take(self, emission: Emission) -> list[wire.Event]:
        """The events that an emission makes; after the last one :attr:`ended` is true."""
        if emission.error is not None:
            self.ended = True
            return [wire.Failed(self._request_id, wire.FailureCode.ENGINE_ERROR, emission.error)]
        self._cached_tokens += emission.cached_tokens
        # An end-of-sequence token counts, but is not text, whether or not the tokenizer calls it special.
        ends = int(emission.finish == "stop")
        piece = self._push(emission.token_ids[: len(emission.token_ids) - ends], emission.accepted)
        kept = piece.kept if piece.stopped else piece.kept + ends
        self._count(emission, kept)
        finish = "stop" if piece.stopped else emission.finish
        text = piece.text if finish is None or piece.stopped else piece.text + self._text.finish()
        events: list[wire.Event] = []
        if kept or text:
            events.append(
                wire.Delta(
                    self._request_id,
                    self._completion_tokens,
                    emission.token_ids[:kept],
                    text,
                    self._counters,
                    self._drafted.take(len(text)) if self._drafted is not None else (),
                )
            )
        self._completion_tokens += kept
        if finish is not None:
            self.ended = True
            events.append(
                wire.Finished(
                    self._request_id,
                    finish,
                    self._prompt_tokens,
                    self._completion_tokens,
                    self._cached_tokens,
                    self._counters,
                )
            )
        return events

    def moved(self, lane: wire.Lane) -> wire.Moved:
        """The event that says in which lane the answer goes on."""
        return wire.Moved(self._request_id, lane, self._completion_tokens)

    def _push(self, token_ids: tuple[int, ...], accepted: int) -> Piece:
        return self._text.push(token_ids) if self._drafted is None else self._drafted.push(token_ids, accepted)

    def _count(self, emission: Emission, kept: int) -> None:
        """Book the draft tokens; accepted ones behind a stop string were never delivered, so they are ignored."""
        counters = emission.counters
        if counters is None:
            return
        delivered = counters.undelivered(max(emission.accepted - kept, 0))
        self._counters = delivered if self._counters is None else self._counters + delivered
