"""SIGTERM and SIGINT: the first one drains, the second one cuts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StopSignals:
    """Set by the first and by the second signal; their `wait` are the triggers that `serve` takes."""

    drain: asyncio.Event = field(default_factory=asyncio.Event)
    cut: asyncio.Event = field(default_factory=asyncio.Event)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle SIGTERM and SIGINT inside the block, in the main thread's running loop."""
    loop, stop = asyncio.get_running_loop(), StopSignals()

    def received() -> None:
        (stop.cut if stop.drain.is_set() else stop.drain).set()

    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, received)
    try:
        yield stop
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
