"""What all requests together came to, since the router's start. Pure: no OpenTelemetry, and no clock.

The event loop writes, and whoever collects reads a :meth:`Tally.reading`, on any thread: a lock makes sure that a
request which just ends is counted once, among those under way or those that are over. So no counter ever goes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias, get_args

import msgspec

from lanes.wire import Lane
from opta_router.request import Usage
from opta_router.telemetry import names
from opta_router.telemetry.histograms import Histogram

LANES: Final[tuple[Lane, ...]] = get_args(Lane)


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used, and where: in ``lane``, and after ``moved_after_tokens`` of its answer in ``moved_to``."""

    lane: Lane
    model: str
    usage: Usage
    moved_to: Lane | None = None
    moved_after_tokens: int = 0


ReadShare: TypeAlias = Callable[[], Share]
TokenKey: TypeAlias = tuple[Lane, str, str]
"""Lane, model, and ``input`` or ``output``."""
RequestKey: TypeAlias = tuple[str, str, str, str]
"""Lane, model, outcome and reason."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """A copy for a collector, which nobody writes to."""

    requests: Mapping[RequestKey, int]
    tokens: Mapping[TokenKey, int]


class Tally:
    """One for each router.

    Args:
        models: the configured ones. Their series are there from the start, at zero.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[object, ReadShare] = {}
        served = [(lane, model) for lane in LANES for model in models]
        self._requests: dict[RequestKey, int] = {(*one, "ok", why): 0 for one in served for why in ("stop", "length")}
        self._tokens: dict[TokenKey, int] = {(*one, kind): 0 for one in served for kind in ("input", "output")}
        self.durations = Histogram(names.REQUEST_DURATION)
        self.first_tokens = Histogram(names.TIME_TO_FIRST_TOKEN)
        self.token_times = Histogram(names.TIME_PER_OUTPUT_TOKEN)
        self.waits = Histogram(names.QUEUE_DURATION)
        for lane in LANES:
            self.waits.expect((lane,))

    # the event loop

    def begin(self, key: object, read: ReadShare) -> None:
        """A host has it. Until :meth:`settle`, what it uses is asked of ``read``: only by who collects."""
        with self._lock:
            self._under_way[key] = read

    def settle(self, key: object, share: Share) -> None:
        """The host's last word on it. Whether or not it began."""
        with self._lock:
            self._under_way.pop(key, None)
            _add_tokens(self._tokens, share)

    def over(self, lane: str, model: str, outcome: str, reason: str) -> None:
        """Its HTTP exchange has ended."""
        key = lane, model, outcome, reason
        self._requests[key] = self._requests.get(key, 0) + 1

    # any thread

    def reading(self) -> Totals:
        """Everything as it is now."""
        with self._lock:
            tokens = self._tokens.copy()
            for read in self._under_way.values():
                _add_tokens(tokens, read())
        return Totals(requests=self._requests.copy(), tokens=tokens)

    def histograms(self) -> tuple[Histogram, ...]:
        """Copies of all."""
        return tuple(one.copied() for one in (self.durations, self.first_tokens, self.token_times, self.waits))


def _add_tokens(tokens: dict[TokenKey, int], share: Share) -> None:
    usage, lane, model = share.usage, share.lane, share.model
    here = usage.completion_tokens
    if share.moved_to is not None:
        here = min(share.moved_after_tokens, here)
        _add(tokens, (share.moved_to, model, "output"), usage.completion_tokens - here)
    _add(tokens, (lane, model, "output"), here)
    _add(tokens, (lane, model, "input"), usage.prompt_tokens)


def _add(tokens: dict[TokenKey, int], key: TokenKey, count: int) -> None:
    tokens[key] = tokens.get(key, 0) + count
