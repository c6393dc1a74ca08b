"""What the front door needs of the engine behind it."""

from __future__ import annotations

from typing import Protocol

from lanes import wire
from lanes.client import Generation, OnEnd, OnInterruption, OnProgress
from lanes.pairs import Pairs
from lanes.restarts import Quarantine
from lanes.states import HostState


class Engine(Protocol):
    """What is needed of :class:`lanes.supervisor.Supervisor`."""

    pairs: Pairs
    stats: wire.Stats | None
    host_pid: int | None
    restarts: int
    resumed: int
    last_failure: str | None
    last_activity: str | None

    @property
    def standby_pid(self) -> int | None:
        """The host that stands by to take the place of this one, if there is one."""
        ...

    @property
    def state(self) -> HostState:
        """Where the host is in its life."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What the device has; 0 if it is not known."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that have been taken and are on no host now."""
        ...

    def quarantined(self) -> dict[str, Quarantine]:
        """Models that are not loaded, for they kept killing their host."""
        ...

    def lift_quarantine(self, model: str) -> None:
        """Let one be loaded again."""
        ...

    @property
    def lanes(self) -> dict[wire.Lane, wire.LaneStats]:
        """What the device does for each lane, and has done since the router's start."""
        ...

    @property
    def prompt_caches(self) -> dict[str, wire.PromptCacheStats]:
        """By model: what is kept, and its counters since the router's start."""
        ...

    def submit(
        self,
        submit: wire.Submit,
        on_end: OnEnd,
        on_progress: OnProgress | None = None,
        on_interruption: OnInterruption | None = None,
    ) -> Generation:
        """Hand a request over. Raises HostUnavailable, RequestRefused."""
        ...

    def not_ready_reasons(self) -> list[str]:
        """Why no host takes requests now."""
        ...

    def refusals(self) -> list[str]:
        """Why a request would be refused now, rather than wait for a host."""
        ...
