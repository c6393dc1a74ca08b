"""The application's lifespan, around the serving."""

from __future__ import annotations

import asyncio
from typing import Any

from hypercorn.asyncio.lifespan import Lifespan

from opta_router.server.race import Trigger, first_of


class LifespanEndedError(RuntimeError):
    """The application's lifespan ended while it was being served: what its requests rely on is gone."""


class LifespanRun:
    """Starts the application's lifespan on entry and shuts it down on exit.

    Args:
        app: Wrapped for Hypercorn.
        config: Hypercorn's; its `startup_timeout` and `shutdown_timeout` count.
        state: What the lifespan hands to the requests.
        cut: Returns when the shutdown is to be cut short.
        cut_timeout_s: How long a lifespan that was cancelled may still take.
    """

    def __init__(self, app: Any, config: Any, state: dict[str, Any], *, cut: Trigger, cut_timeout_s: float) -> None:
        self._lifespan = _Lifespan(app, config, asyncio.get_running_loop(), state)
        self._cut = cut
        self._cut_timeout_s = cut_timeout_s

    async def __aenter__(self) -> LifespanRun:
        self._task = asyncio.get_running_loop().create_task(self._lifespan.handle_lifespan())
        try:
            await self._lifespan.wait_for_startup()
            if not self._lifespan.started:
                # It failed, and may have something to clean up; or it has no lifespan and has returned.
                await asyncio.wait([self._task], timeout=self._cut_timeout_s)
                await self._end()
        except BaseException:
            await self._end()
            raise
        return self

    async def ended(self) -> None:
        """Wait for an end that nobody asked for.

        Raises:
            LifespanEndedError: always, unless cancelled.
        """
        if not self._lifespan.started:
            await asyncio.Event().wait()
        await asyncio.wait([self._task])
        error = None if self._task.cancelled() else self._task.exception()
        raise LifespanEndedError("the application's lifespan ended while it was being served") from error

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            await first_of(self._lifespan.wait_for_shutdown(), self._cut())
        finally:
            await self._end(quietly=kind is not None)

    async def _end(self, *, quietly: bool = False) -> None:
        self._task.cancel()
        await asyncio.wait([self._task], timeout=self._cut_timeout_s)
        if self._task.done() and not self._task.cancelled() and not quietly:
            self._task.result()


class _Lifespan(Lifespan):  # type: ignore[misc]
    """Hypercorn's, which remembers whether the application said that it had started."""

    started = False

    async def asgi_send(self, message: Any) -> None:
        self.started = self.started or message["type"] == "lifespan.startup.complete"
        await super().asgi_send(message)
