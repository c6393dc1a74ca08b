"""Waiting for whatever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Trigger = Callable[[], Awaitable[object]]
"""Gives something to wait for; it may be asked more than once."""


async def never() -> None:
    """A trigger that does not return."""
    await asyncio.Event().wait()


async def first_of(*waiting: Awaitable[object], timeout_s: float | None = None) -> None:
    """Wait until one of `waiting` ends or `timeout_s` is over, and cancel the others.

    Raises:
        Exception: what those that have ended raised.
    """
    tasks = [asyncio.ensure_future(each) for each in waiting]
    try:
        done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
