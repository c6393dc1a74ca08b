"""What the client sent, on its way to the application."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

from hypercorn.asyncio.task_group import TaskGroup, _handle

Message = MutableMapping[str, Any]

ON_DISCONNECT: Final = "opta.on_disconnect"
"""Extension of the ASGI scope: see :meth:`AppQueue.on_disconnect`. A task that waits for the disconnect message costs
more than all of Hypercorn's work on a small request."""

_DISCONNECTS = ("http.disconnect", "websocket.disconnect")


class AppQueue:
    """Messages for one application call: bounded while it reads, discarding once nobody will read again.

    Hypercorn uses `asyncio.Queue`. Its `put` blocks for ever when the application answered without reading the whole
    body, and with it the connection, its tasks and its descriptor; a disconnect cannot get past a full queue either.
    """

    def __init__(self, max_messages: int) -> None:
        self._messages: deque[Message] = deque()
        self._max_messages = max_messages
        self._disconnect: Message | None = None
        self._left: Callable[[], None] | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self.closed = False

    async def get(self) -> Message:
        """The next message; after a disconnect, that one again for whoever asks."""
        while not self._messages:
            if self._disconnect is not None:
                return self._disconnect
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        return self._messages.popleft()

    async def put(self, message: Message) -> None:
        """Wait for room, unless the message is a disconnect; drop it when the queue is closed."""
        if message["type"] in _DISCONNECTS:
            self._disconnect = message
            self.close()
            if self._left is not None:
                self._left()
            return
        while not self.closed and len(self._messages) >= self._max_messages:
            self._writable.clear()
            await self._writable.wait()
        if not self.closed:
            self._messages.append(message)
            self._readable.set()

    def on_disconnect(self, left: Callable[[], None]) -> None:
        """Call ``left`` when the client goes before its answer is complete; at once if it has gone."""
        self._left = left
        if self._disconnect is not None:
            left()

    def answered(self) -> None:
        """The answer is complete: who goes now leaves nothing behind."""
        self._left = None

    def close(self) -> None:
        """Nothing more is wanted: the answer is complete, the application has returned or the client has gone."""
        self.closed = True
        self._writable.set()
        self._readable.set()


class AppTaskGroup(TaskGroup):  # type: ignore[misc]
    """Hypercorn's task group, with an `AppQueue` between the connection and each application call."""

    async def spawn_app(
        self,
        app: Callable[..., Awaitable[None]],
        config: Any,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Message], Awaitable[None]]:
        """Start the application on `scope`; returns where to put the client's messages."""
        queue = AppQueue(config.max_app_queue_size)
        scope["extensions"][ON_DISCONNECT] = queue.on_disconnect

        async def send_or_yield(message: Any) -> None:
            if message is None:
                queue.close()
            elif queue.closed:
                # Nothing downstream waits any more, and an application that only ever sends must not own the loop.
                await asyncio.sleep(0)
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                queue.answered()
            await send(message)

        run_in_thread = partial(self._loop.run_in_executor, None)
        self.spawn(_handle, app, config, scope, queue.get, send_or_yield, run_in_thread, _no_threads)
        return queue.put


def _no_threads(*_: object) -> None:
    raise RuntimeError("only ASGI applications are served")
