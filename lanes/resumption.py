"""What a request takes along when its host dies, and who goes to the next host when. Pure: no clock, no I/O.

A request is resubmitted as its prompt and the tokens that its answer has so far; the next host rebuilds the rest of its
state from them. Request migration in NVIDIA Dynamo is the model, and its traps the reason for keeping token ids, never
text, and for counting characters.

Nobody knows which of a host's requests killed it. So those of a dead host go to the next one by one: the next when the
one before it has had a token, for then it has done what the last host may have died of. If that host dies, too, only
the one on trial has been on two hosts in a row without a token from the second, and it is the poison.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec

from lanes import wire
from lanes.errors import PoisonRequest

POISON_DEATHS: Final = 2
"""Hosts that may die in a row with a request that gets no token from any but the first of them."""


class Interrupted(msgspec.Struct, frozen=True):
    """The request's host is gone. It waits for another, or ends."""


class Resumed(msgspec.Struct, frozen=True):
    """The request went to another host, which goes on behind ``emitted_tokens`` tokens of its answer."""

    emitted_tokens: int


Interruption: TypeAlias = Interrupted | Resumed


class History:
    """One request, over all the hosts that it has been on. Nothing here is more than its answer's tokens."""

    def __init__(self, submit: wire.Submit) -> None:
        self.asked = submit
        self.lane = submit.lane
        self.cancelled = False
        self.deaths = 0
        self.hosts = 0
        self.prompt_tokens = 0
        self._moving_to: wire.Lane | None = None
        self._token_ids: list[int] = []
        self._text_chars = 0
        self._speculative: wire.SpecCounters | None = None

    @property
    def emitted_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self._token_ids)

    @property
    def moving(self) -> bool:
        """Whether it was to go on in another lane, and has not been heard of there."""
        return self._moving_to is not None

    def submission(self) -> wire.Submit:
        """What the next host is told. Its lane is where the request was, or was going to."""
        self.hosts += 1
        emitted = wire.Emitted(tuple(self._token_ids), self._text_chars, self._speculative)
        return msgspec.structs.replace(self.asked, lane=self.lane, emitted=emitted)

    def started(self, event: wire.Started) -> None:
        """Its prompt is known."""
        self.prompt_tokens = event.prompt_tokens

    def grew(self, delta: wire.Delta) -> None:
        """Its answer went on."""
        self._token_ids += delta.token_ids
        self._text_chars += len(delta.text)
        self._speculative = delta.speculative
        if delta.token_ids:
            self.deaths = 0

    def asked_to_move(self, lane: wire.Lane) -> None:
        """It is to go on in another lane."""
        self._moving_to = lane

    def moved(self, lane: wire.Lane) -> None:
        """It is in ``lane`` now."""
        self.lane, self._moving_to = lane, None

    def settle_move(self) -> wire.Moved | None:
        """Where a move that was under way when the host died ends: where it was going to, for all is to be computed
        again anyway. Between hosts only.
        """
        if self._moving_to is None:
            return None
        self.moved(self._moving_to)
        return wire.Moved(self.asked.request_id, self.lane, self.emitted_tokens)

    def host_died(self) -> wire.Finished | wire.Failed | None:
        """Its host is gone: how it ends; None if it goes to the next one."""
        if self.cancelled:
            return self.cancellation()
        self.deaths += 1
        if self.deaths >= POISON_DEATHS:
            why = f"the engine died {self.deaths} times in a row when it worked on this request"
            return wire.Failed(self.asked.request_id, PoisonRequest.code, why)
        return None

    def cancellation(self) -> wire.Finished:
        """Its end if it is on no host and nobody wants it any more."""
        return wire.Finished(
            self.asked.request_id,
            "cancelled",
            self.prompt_tokens,
            self.emitted_tokens,
            speculative=self._speculative,
        )


class HasHistory(Protocol):
    """Whatever has a history, and waits."""

    history: History


T = TypeVar("T", bound=HasHistory)


def next_up(waiting: Iterable[T], *, on_trial: bool) -> list[T]:
    """Of those that wait for a host, who goes to it now.

    All that have seen no host die; and, while nobody is on trial, one of the others: of the interactive lane before the
    other, and of those the one with the least to compute again, so that the most are soon going on.
    """
    waiting = list(waiting)
    suspects = [] if on_trial else [one for one in waiting if one.history.deaths]
    first = min(suspects, key=_rank, default=None)
    return [one for one in waiting if not one.history.deaths or one is first]


def _rank(one: HasHistory) -> tuple[bool, bool, int]:
    history = one.history
    return history.lane != "interactive", not history.prompt_tokens, history.prompt_tokens + history.emitted_tokens
