"""What a request takes along when its host dies, and who goes to the next host when. Pure: no clock, no I/O.

A request is resubmitted as its prompt and the tokens that its answer has so far; the next host rebuilds the rest of its
state from them. Request migration in NVIDIA Dynamo is the model, and its traps the reason for keeping token ids, never
text, and for counting characters.

Nobody knows which of a host's requests killed it. Those that it got going are *steady*, and go to the next host
together. The others are *suspects*, and go one by one, while everybody else there has got going: if that host dies,
too, it died of the one on trial, which is the poison; the others go on. A request that kills its host when it begins,
or is resumed, is found by the second death; one that was steady until then, and kills every host from then on, by the
third: after the first it was as innocent as its neighbours, and the second does not tell it from those that had not
got going again. A host that dies while it loads a pair did not die of a request: nobody is suspected.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol, TypeAlias, TypeVar

import msgspec

from lanes import wire
from lanes.errors import PoisonRequest

POISON_DEATHS: Final = 2
"""Hosts that die in a row with a request, none of which got it going, the last of them while it was on trial."""

GOING_DELTAS: Final = 2
"""Pieces with tokens that show that a host got a request going: the first is of its prefill, the next of decoding."""


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
        self._deltas_here = 0  # with tokens, from the host that it is on, or was on last
        self._finished = False
        self._moving_to: wire.Lane | None = None
        self._token_ids: list[int] = []
        self._text_chars = 0
        self.speculative: wire.SpecCounters | None = None

    @property
    def emitted_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self._token_ids)

    @property
    def going(self) -> bool:
        """Whether the host that it is on, or was on last, has got it going: through its prefill, and further."""
        return self._finished or self._deltas_here >= GOING_DELTAS

    @property
    def suspect(self) -> bool:
        """Whether a host died with it that had not got it going."""
        return self.deaths > 0 and not self.going

    @property
    def moving(self) -> bool:
        """Whether it was to go on in another lane, and has not been heard of there."""
        return self._moving_to is not None

    def submission(self) -> wire.Submit:
        """What the next host is told. Its lane is where the request was, or was going to."""
        self.hosts += 1
        self._deltas_here = 0
        emitted = wire.Emitted(tuple(self._token_ids), self._text_chars, self.speculative)
        return msgspec.structs.replace(self.asked, lane=self.lane, emitted=emitted)

    def started(self, event: wire.Started) -> None:
        """Its prompt is known."""
        self.prompt_tokens = event.prompt_tokens

    def grew(self, delta: wire.Delta) -> None:
        """Its answer went on."""
        self._token_ids += delta.token_ids
        self._text_chars += len(delta.text)
        self.speculative = delta.speculative
        self._deltas_here += bool(delta.token_ids)
        if self.going:
            self.deaths = 0

    def finished(self, event: wire.Finished) -> None:
        """It has ended in order."""
        self._finished = event.reason != "cancelled"

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

    def host_died(self, *, on_trial: bool, loading: bool = False) -> wire.Finished | wire.Failed | None:
        """Its host is gone: how it ends; None if it goes to the next one.

        Args:
            on_trial: everybody else there had got going.
            loading: the host died of a load, and so of no request.
        """
        if self.cancelled:
            return self.cancellation()
        if loading:
            return None
        self.deaths += 1
        if self.deaths >= POISON_DEATHS and on_trial:
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
            speculative=self.speculative,
        )


class HasHistory(Protocol):
    """Whatever has a history, and waits."""

    history: History


T = TypeVar("T", bound=HasHistory)


def next_up(waiting: Iterable[T], *, unsettled: int, on_trial: bool) -> list[T]:
    """Of those that wait for a host, who goes to it now.

    While nobody is on trial, all that a host had got going; then, when everyone on the host has got going again, one
    suspect: of the interactive lane before the other, and of those the one with the least to compute, so that the most
    are soon going on. Who has not been on any host goes when no suspect waits: under load there would always be another
    one, and no suspect would ever have its trial.

    Args:
        waiting: in their order of arrival.
        unsettled: requests that the host has not got going yet.
        on_trial: one of them is a suspect.
    """
    if on_trial:
        return []
    waiting = list(waiting)
    suspects = [one for one in waiting if one.history.suspect]
    if not suspects:
        return waiting
    steady = [one for one in waiting if one.history.hosts and not one.history.suspect]
    if steady or unsettled:
        return steady
    return [min(suspects, key=_rank)]


def _rank(one: HasHistory) -> tuple[bool, bool, int]:
    history = one.history
    return history.lane != "interactive", not history.prompt_tokens, history.prompt_tokens + history.emitted_tokens
