"""What all requests together came to, since the router's start. Pure: no OpenTelemetry, and no clock.

The event loop writes, and whoever collects reads a :meth:`Tally.reading`, on any thread: a lock makes sure that a
request which just ends is counted once, among those under way or those that are over. So no counter ever goes back.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, Protocol, TypeAlias, get_args

import msgspec

from lanes.wire import Lane
from opta_router.request import Usage
from opta_router.telemetry import names
from opta_router.telemetry.histograms import Buckets, Histogram

LANES: Final[tuple[Lane, ...]] = get_args(Lane)

TokenKey: TypeAlias = tuple[Lane, str, str]
"""Lane, model, and ``input`` or ``output``."""
RequestKey: TypeAlias = tuple[str, str, str, str]
"""Lane, model, outcome and reason."""


class Share(NamedTuple):
    """What one request used, and where: in ``lane``, and after ``moved_after_tokens`` of its answer in ``moved_to``."""

    served: Served
    usage: Usage
    moved_to: Served | None = None
    moved_after_tokens: int = 0


class UnderWay(Protocol):
    """A request that a host has."""

    def share(self) -> Share:
        """What it has used so far. On any thread."""
        ...


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """A copy for a collector, which nobody writes to."""

    requests: Mapping[RequestKey, int]
    tokens: Mapping[TokenKey, int]


class Served:
    """What one operation of one model in one lane came to. Whoever has it adds to it without looking anything up."""

    __slots__ = (
        *("_durations", "_labels", "durations", "first_tokens", "input_tokens", "lane", "model", "outcomes"),
        *("output_tokens", "token_times"),
    )

    def __init__(
        self, operation: str, model: str, lane: str, histograms: tuple[Histogram, Histogram, Histogram]
    ) -> None:
        self.model = model
        self.lane = lane
        self.input_tokens = 0
        self.output_tokens = 0
        self.outcomes: dict[tuple[str, str], int] = {}
        self._labels = (operation, names.PROVIDER, model, lane)
        self._durations, first_tokens, token_times = histograms
        self.durations = self._durations.of(*self._labels, None)
        self.first_tokens = first_tokens.of(*self._labels)
        self.token_times = token_times.of(*self._labels)

    def durations_of(self, error: str) -> Buckets:
        """Of requests that ended with that code; :attr:`durations` has those without."""
        return self._durations.of(*self._labels, error)

    def count(self, outcome: str, reason: str) -> None:
        """One is over."""
        key = outcome, reason
        self.outcomes[key] = self.outcomes.get(key, 0) + 1


class Tally:
    """One for each router.

    Args:
        models: the configured ones. Their series are there from the start, at zero.
    """

    def __init__(self, models: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._under_way: set[UnderWay] = set()
        self._models = tuple(models)
        self._times = (
            *(Histogram(names.REQUEST_DURATION), Histogram(names.TIME_TO_FIRST_TOKEN)),
            Histogram(names.TIME_PER_OUTPUT_TOKEN),
        )
        self._waits = Histogram(names.QUEUE_DURATION)
        self._served: dict[tuple[str, str, str], Served] = {}
        self.waits: Mapping[Lane, Buckets] = {lane: self._waits.of(lane) for lane in LANES}
        self.not_understood: Counter[tuple[str, str]] = Counter()
        """Outcome and reason of requests that ended before anyone knew what they want."""

    # the event loop

    def served(self, operation: str, model: str, lane: str) -> Served:
        """Where such a request is counted."""
        found = self._served.get((operation, model, lane))
        if found is None:
            found = self._served[operation, model, lane] = Served(operation, model, lane, self._times)
        return found

    def begin(self, request: UnderWay) -> None:
        """A host has it. Until :meth:`settle`, what it uses is asked of it: only by who collects."""
        with self._lock:
            self._under_way.add(request)

    def settle(self, request: UnderWay, served: Served, usage: Usage) -> None:
        """The host's last word on it, whether or not it began."""
        with self._lock:
            self._under_way.discard(request)
            served.input_tokens += usage.prompt_tokens
            served.output_tokens += usage.completion_tokens

    def settle_moved(self, request: UnderWay, share: Share) -> None:
        """The same, of one that has been in both lanes."""
        with self._lock:
            self._under_way.discard(request)
            for (served, kind), count in _spread(share).items():
                if kind == "input":
                    served.input_tokens += count
                else:
                    served.output_tokens += count

    # any thread

    def reading(self) -> Totals:
        """The counts as they are now."""
        of_all = [(lane, model) for lane in LANES for model in self._models]
        tokens: Counter[tuple[str, str, str]] = Counter(
            {(*one, kind): 0 for one in of_all for kind in ("input", "output")}
        )
        requests: Counter[RequestKey] = Counter({(*one, "ok", why): 0 for one in of_all for why in ("stop", "length")})
        with self._lock:
            for served in self._served.values():
                tokens[served.lane, served.model, "input"] += served.input_tokens
                tokens[served.lane, served.model, "output"] += served.output_tokens
            for request in self._under_way:
                for (served, kind), count in _spread(request.share()).items():
                    tokens[served.lane, served.model, kind] += count
        for served in list(self._served.values()):
            for (outcome, reason), count in list(served.outcomes.items()):
                requests[served.lane, served.model, outcome, reason] += count
        for (outcome, reason), count in list(self.not_understood.items()):
            requests[names.NO_LANE, names.NO_MODEL, outcome, reason] += count
        # Of a lane that was only asked for, no token was ever computed.
        by_lane = {
            (lane, model, kind): n for (name, model, kind), n in tokens.items() for lane in LANES if lane == name
        }
        return Totals(requests=requests, tokens=by_lane)

    def histograms(self) -> tuple[Histogram, ...]:
        """Copies of all."""
        return tuple(histogram.copied() for histogram in (*self._times, self._waits))


def _spread(share: Share) -> dict[tuple[Served, str], int]:
    served, usage, moved_to, moved_after_tokens = share
    spread = {(served, "input"): usage.prompt_tokens, (served, "output"): usage.completion_tokens}
    if moved_to is not None:
        spread[served, "output"] = here = min(moved_after_tokens, usage.completion_tokens)
        spread[moved_to, "output"] = usage.completion_tokens - here
    return spread
