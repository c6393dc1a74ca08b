"""Whether a pair's draft still earns its keep: a circuit breaker over the acceptance ratio. Pure.

Requests that speculate report how many draft tokens were accepted and rejected. When the ratio over a sliding window of
compared tokens falls below a bound, the pair stops speculating; after a while one request at a time tries again, and
the pair comes back when those reach the bound and a margin: without it, a pair at the bound would flap. Each retry that
fails doubles the time to the next. Method: M. Nygard, "Release It!", 2007 (closed, open, half-open).

The request's own :mod:`lanes.engines.draft_length` shortens rounds that do not pay, within one answer; this one saves
the rest: the draft's prefill, and finding out anew in each answer.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Final

import msgspec

from policies.schema import SpeculationConfig

RETRY_SHARE: Final = 4
"""A retry is judged on a quarter of the window: what is bad shows soon, and until then it costs."""

MAX_DOUBLINGS: Final = 4
"""The time to the next retry grows to sixteen times the configured one."""


class GateState(StrEnum):
    """Where a pair's speculation is. The values are public: ``/admin/models`` shows them."""

    ON = "on"
    OFF = "off"  # too little was accepted; waits for a retry
    RETRYING = "retrying"  # one request at a time speculates, the others do not


class GateEvent(StrEnum):
    """What can happen to it."""

    LOW = "low"
    GOOD = "good"
    DUE = "due"
    RESET = "reset"  # somebody put another draft in its place, or knows better


TRANSITIONS: Final[dict[GateState, dict[GateEvent, GateState]]] = {
    GateState.ON: {GateEvent.LOW: GateState.OFF, GateEvent.RESET: GateState.ON},
    GateState.OFF: {GateEvent.DUE: GateState.RETRYING, GateEvent.RESET: GateState.RETRYING},
    GateState.RETRYING: {
        GateEvent.LOW: GateState.OFF,
        GateEvent.GOOD: GateState.ON,
        GateEvent.RESET: GateState.RETRYING,
    },
}


class IllegalGateEvent(Exception):
    """An event that cannot happen in the present state; the state is unchanged."""


def after(state: GateState, event: GateEvent) -> GateState:
    """The state that ``event`` leads to.

    Raises:
        IllegalGateEvent: the table has no such entry.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        allowed = ", ".join(TRANSITIONS[state])
        raise IllegalGateEvent(f"speculation is {state}: {event} cannot happen; possible: {allowed}") from None


class GateRules(msgspec.Struct, frozen=True, kw_only=True):
    """When a pair stops and starts. ``window_tokens`` counts compared draft tokens, accepted and rejected."""

    min_acceptance: float = 0.35
    window_tokens: int = 128
    retry_margin: float = 0.05
    retry_after_s: float = 60.0

    @property
    def resume_acceptance(self) -> float:
        """What a retry must reach."""
        return min(self.min_acceptance + self.retry_margin, 1.0)


def gate_rules(config: SpeculationConfig) -> GateRules:
    """The rules in a configuration."""
    return GateRules(
        min_acceptance=config.min_acceptance,
        window_tokens=config.acceptance_window,
        retry_margin=config.retry_margin,
        retry_after_s=float(config.retry_after),
    )


class GatePass(msgspec.Struct, frozen=True, eq=False):
    """A request's leave to speculate; it counts for the ``era`` that gave it, and for no later one."""

    era: int


class GateView(msgspec.Struct, frozen=True, kw_only=True):
    """A gate as it stands. ``acceptance_ratio`` is that of the window, None while nothing was compared.

    ``retry_in_s``: until it is tried again, while it is off. ``switched_off`` counts from the gate's beginning.
    """

    state: GateState
    acceptance_ratio: float | None
    compared_tokens: int
    retry_in_s: float | None
    switched_off: int


class AcceptanceGate:
    """One pair's. ``now_s`` is any monotonic clock's, the same one in all calls."""

    def __init__(self, rules: GateRules) -> None:
        self._rules = rules
        self._state = GateState.ON
        self._window: deque[tuple[int, int]] = deque()
        self._accepted = self._rejected = 0
        self._era = 0
        self._trial: GatePass | None = None
        self._retry_at_s = 0.0
        self._failed_retries = 0
        self._switched_off = 0

    def configure(self, rules: GateRules) -> None:
        """Other rules from now on; what was measured stays, and is judged with the next answer."""
        self._rules = rules
        self._slide()

    def begin(self, now_s: float) -> GatePass | None:
        """A request would speculate: its pass, to be given to :meth:`end` whatever becomes of it; None: it must not."""
        if self._rules.min_acceptance <= 0:
            return GatePass(self._era)
        self._wake(now_s)
        if self._state is GateState.OFF or self._trial is not None:
            return None
        granted = GatePass(self._era)
        if self._state is GateState.RETRYING:
            self._trial = granted
        return granted

    def end(self, granted: GatePass, accepted: int, rejected: int, now_s: float) -> GateState:
        """A request that speculated is over: the state that its draft tokens lead to."""
        if granted is self._trial:
            self._trial = None
        if granted.era != self._era or self._rules.min_acceptance <= 0:
            return self._state
        if accepted + rejected:
            self._window.append((accepted, rejected))
            self._accepted += accepted
            self._rejected += rejected
            self._slide()
        event = self._judged()
        if event is not None:
            self._happened(event, now_s)
        return self._state

    def reset(self, now_s: float) -> None:
        """What was measured says nothing any more: a pair that is off is tried at once."""
        self._happened(GateEvent.RESET, now_s)

    def view(self, now_s: float) -> GateView:
        """See :class:`GateView`. Changes nothing: a retry begins with the request that takes it."""
        compared = self._accepted + self._rejected
        off = self._state is GateState.OFF
        return GateView(
            state=self._state,
            acceptance_ratio=round(self._accepted / compared, 4) if compared else None,
            compared_tokens=compared,
            retry_in_s=round(max(self._retry_at_s - now_s, 0.0), 1) if off else None,
            switched_off=self._switched_off,
        )

    @property
    def closed(self) -> bool:
        """Whether the pair as such does not speculate now; a retry's single request does not open it."""
        return self._state is not GateState.ON and self._rules.min_acceptance > 0

    def _wake(self, now_s: float) -> None:
        if self._state is GateState.OFF and now_s >= self._retry_at_s:
            self._happened(GateEvent.DUE, now_s)

    def _judged(self) -> GateEvent | None:
        """What the window says; None: not enough yet, or nothing new."""
        rules, compared = self._rules, self._accepted + self._rejected
        retrying = self._state is GateState.RETRYING
        needed = max(rules.window_tokens // RETRY_SHARE, 1) if retrying else rules.window_tokens
        if compared < needed:
            return None
        ratio = self._accepted / compared
        if retrying:
            return GateEvent.GOOD if ratio >= rules.resume_acceptance else GateEvent.LOW
        return GateEvent.LOW if ratio < rules.min_acceptance else None

    def _happened(self, event: GateEvent, now_s: float) -> None:
        before, self._state = self._state, after(self._state, event)
        if event is GateEvent.LOW:
            self._failed_retries = self._failed_retries + 1 if before is GateState.RETRYING else 0
            doublings = min(self._failed_retries, MAX_DOUBLINGS)
            self._retry_at_s = now_s + self._rules.retry_after_s * 2**doublings
            self._switched_off += before is GateState.ON
        elif event is not GateEvent.GOOD:
            # A retry is judged by its own answers; when it went well, they are the beginning of the next window.
            self._window.clear()
            self._accepted = self._rejected = 0
        self._era += 1
        self._trial = None

    def _slide(self) -> None:
        """Forget the oldest answers that the window does not need."""
        while self._window:
            accepted, rejected = self._window[0]
            if self._accepted + self._rejected - accepted - rejected < self._rules.window_tokens:
                return
            self._window.popleft()
            self._accepted -= accepted
            self._rejected -= rejected
