"""A real server on a real port, inside the test's event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio

from opta_router.server.limits import ServerLimits
from opta_router.server.runner import ASGIApp, serve


@dataclass(frozen=True)
class RunningServer:
    """Where it listens, its triggers of shutdown and cut, and the task that ends when the shutdown is over."""

    url: str
    stop: asyncio.Event
    cut: asyncio.Event
    task: asyncio.Task[None]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as `asyncio.open_connection` takes them."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0


@asynccontextmanager
async def serving(app: ASGIApp, **limits: Any) -> AsyncIterator[RunningServer]:
    """Serve `app` on a free loopback port under `ServerLimits(**limits)`; shut it down at the end.

    Draining is cut at once unless `drain_timeout_s` says otherwise.
    """
    stop, cut, url = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop().create_future()
    bounds = ServerLimits(**{"drain_timeout_s": 0.1, **limits})
    task = asyncio.create_task(
        serve(
            app,
            host="127.0.0.1",
            port=0,
            shutdown_trigger=stop.wait,
            cut_trigger=cut.wait,
            limits=bounds,
            on_bound=url.set_result,
        )
    )
    await asyncio.wait([task, url], return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            task.result()
        yield RunningServer(url.result(), stop, cut, task)
    finally:
        stop.set()
        await task


def open_descriptors() -> int:
    """Descriptors that this process holds (Linux, macOS)."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


async def until(condition: Callable[[], bool], *, within_s: float = 20.0) -> None:
    """Wait until `condition` holds.

    Raises:
        TimeoutError: it does not hold after `within_s`.
    """
    with anyio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await anyio.sleep(0.01)


async def descriptors_back_to(count: int) -> None:
    """Wait until the process holds no more than `count` descriptors; TimeoutError if it never does."""
    await until(lambda: open_descriptors() <= count)
