"""The router's side of a link to a host: submit requests, receive their events.

One :class:`Link` multiplexes all requests of one host over one byte stream. It never waits for a slow reader: what a
request's reader has not taken is kept in an inbox of its own, merged to a few events, so one stalled client costs the
memory of its answer's tokens (at most ``max_tokens``) and delays nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from anyio.abc import SocketStream

from lanes import wire
from lanes.errors import HostDied, HostUnavailable, RequestRefused, WireError
from lanes.framed import FramedSocket

OnEnd = Callable[[wire.Finished | wire.Failed], None]
OnProgress = Callable[[wire.Delta | wire.Moved], None]
"""Called as an event arrives, however slowly the answer is read."""


class Generation:
    """One request on a host, from submission to its last event."""

    def __init__(self, submit: wire.Submit, link: Link, on_end: OnEnd, on_progress: OnProgress | None) -> None:
        self.submit = submit
        self._link = link
        self._on_end = on_end
        self._on_progress = on_progress
        self._inbox: deque[wire.Event] = deque()
        self._arrived = asyncio.Event()
        self._completion_tokens = 0
        self._moving = False
        self.ended = False

    async def receive(self) -> list[wire.Event]:
        """All events that have arrived and were not yet received; waits for at least one.

        Deltas that nobody received in time are joined: the tokens, their order and their indices are those of the host.

        Raises:
            HostDied: the host went away before the request's last event.
            RequestRefused: the host failed the request.
        """
        while not self._inbox:
            if self.ended:
                raise HostDied(f"request {self.submit.request_id}: no more events")
            self._arrived.clear()
            await self._arrived.wait()
        events = list(self._inbox)
        self._inbox.clear()
        failure = events[-1]
        if isinstance(failure, wire.Failed):
            if len(events) > 1:  # deliver what came before it first
                self._inbox.append(failure)
                return events[:-1]
            if failure.code == HostDied.code:
                raise HostDied(failure.message)
            raise RequestRefused(failure.code, failure.message)
        return events

    def cancel(self) -> None:
        """Ask the host to forget the request. The slot is free when ``on_end`` was called, one device step later."""
        if not self.ended:
            self._link.send_soon(wire.Cancel(self.submit.request_id))

    def move(self, lane: wire.Lane) -> None:
        """Ask the host to go on in another lane; :class:`lanes.wire.Moved` says where it does."""
        if not self.ended:
            self._moving = True
            self._link.send_soon(wire.Move(self.submit.request_id, lane))

    def _deliver(self, event: wire.Event) -> None:
        if isinstance(event, wire.Delta):
            if event.index != self._completion_tokens:
                raise WireError(
                    f"request {event.request_id}: delta at token {event.index}, expected {self._completion_tokens}"
                )
            self._completion_tokens += len(event.token_ids)
            if self._on_progress is not None:
                self._on_progress(event)
            event = self._merged_into(event)
        elif isinstance(event, wire.Moved):
            if not self._moving:
                raise WireError(f"request {event.request_id}: moved, though nobody asked for it")
            self._moving = False
            if self._on_progress is not None:
                self._on_progress(event)
        self._inbox.append(event)
        if isinstance(event, wire.Finished | wire.Failed):
            self.ended = True
            self._on_end(event)
        self._arrived.set()

    def _merged_into(self, delta: wire.Delta) -> wire.Delta:
        """``delta``, joined with the unread ones before it that are not longer.

        So the unread ones halve in length, from the oldest to the newest: as many as the logarithm of their tokens, and
        each token was copied that often, however long the reader stalls.
        """
        while self._inbox:
            last = self._inbox[-1]
            if not isinstance(last, wire.Delta) or len(last.token_ids) > len(delta.token_ids):
                break
            self._inbox.pop()
            delta = wire.Delta(delta.request_id, last.index, last.token_ids + delta.token_ids, last.text + delta.text)
        return delta


class Link:
    """A connection to a host that has said Hello."""

    def __init__(self, stream: SocketStream, *, on_message: Callable[[wire.FromHost], None]) -> None:
        """``on_message`` receives everything that is not an event of a request."""
        self._on_message = on_message
        self._socket: FramedSocket[wire.FromHost] = FramedSocket(stream, wire.FromHost, self._handle)
        self._closed = False
        self._generations: dict[str, Generation] = {}

    @property
    def active(self) -> int:
        """Requests submitted and not ended."""
        return len(self._generations)

    def submit(self, submit: wire.Submit, on_end: OnEnd, on_progress: OnProgress | None = None) -> Generation:
        """Hand a request to the host. ``on_end`` is called exactly once, from the event loop, as ``on_progress`` is.

        Raises:
            HostUnavailable: the link is closed; ``on_end`` will not be called.
        """
        if self._closed:
            raise HostUnavailable("the engine is not running")
        if submit.request_id in self._generations:
            raise ValueError(f"request id {submit.request_id!r} is in use")
        generation = Generation(submit, self, on_end, on_progress)
        self.send_soon(submit)
        self._generations[submit.request_id] = generation
        return generation

    def send_soon(self, message: wire.ToHost) -> None:
        """Queue a message; it is written by :meth:`run`. Does nothing on a closed link."""
        if not self._closed:
            self._socket.put(message)

    async def run(self) -> None:
        """Pump both directions until the host closes the link; then end every open request with a failure.

        Raises:
            WireError: the host sent something that is not our protocol.
        """
        try:
            await self._socket.run()
        finally:
            self._close()

    def _handle(self, message: wire.FromHost) -> None:
        if not isinstance(message, wire.Events):
            self._on_message(message)
            return
        for event in message.items:
            generation = self._generations.get(event.request_id)
            if generation is None:
                continue  # ended here already
            if isinstance(event, wire.Finished | wire.Failed):
                del self._generations[event.request_id]
            generation._deliver(event)

    def _close(self) -> None:
        self._closed = True
        generations, self._generations = self._generations, {}
        for generation in generations.values():
            generation._deliver(
                wire.Failed(generation.submit.request_id, HostDied.code, "the engine stopped while it answered")
            )
