"""The router's side of a link to a host: submit requests, receive their events.

One :class:`Link` multiplexes all requests of one host over one byte stream. It never waits for a slow reader: what a
request's reader has not taken is kept in an inbox of its own, merged to a few events, so one stalled client costs the
memory of its answer's tokens (at most ``max_tokens``) and delays nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
from anyio.abc import ByteStream

from lanes import wire
from lanes.errors import HostDied, HostUnavailable, RequestRefused, WireError
from lanes.outbox import Outbox

RECEIVE_BYTES = 256 * 1024

OnEnd = Callable[[wire.Finished | wire.Failed], None]


class Generation:
    """One request on a host, from submission to its last event."""

    def __init__(self, submit: wire.Submit, link: Link, on_end: OnEnd) -> None:
        self.submit = submit
        self._link = link
        self._on_end = on_end
        self._inbox: deque[wire.Event] = deque()
        self._arrived = anyio.Event()
        self._completion_tokens = 0
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
            self._arrived = anyio.Event()
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

    def _deliver(self, event: wire.Event) -> None:
        if isinstance(event, wire.Delta):
            if event.index != self._completion_tokens:
                raise WireError(
                    f"request {event.request_id}: delta at token {event.index}, expected {self._completion_tokens}"
                )
            self._completion_tokens += len(event.token_ids)
            event = self._merged_into(event)
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

    def __init__(self, stream: ByteStream, *, on_message: Callable[[wire.FromHost], None]) -> None:
        """``on_message`` receives everything that is not an event of a request."""
        self._stream = stream
        self._on_message = on_message
        self._reader: wire.FrameReader[wire.FromHost] = wire.FrameReader(wire.FromHost)
        self._outbox = Outbox(stream)
        self._closed = False
        self._generations: dict[str, Generation] = {}

    @property
    def active(self) -> int:
        """Requests submitted and not ended."""
        return len(self._generations)

    def submit(self, submit: wire.Submit, on_end: OnEnd) -> Generation:
        """Hand a request to the host. ``on_end`` is called exactly once, from the event loop.

        Raises:
            HostUnavailable: the link is closed; ``on_end`` will not be called.
        """
        if self._closed:
            raise HostUnavailable("the engine is not running")
        if submit.request_id in self._generations:
            raise ValueError(f"request id {submit.request_id!r} is in use")
        generation = Generation(submit, self, on_end)
        self.send_soon(submit)
        self._generations[submit.request_id] = generation
        return generation

    def send_soon(self, message: wire.ToHost) -> None:
        """Queue a message; it is written by :meth:`run`. Does nothing on a closed link."""
        if not self._closed:
            self._outbox.put(message)

    async def run(self) -> None:
        """Pump both directions until the host closes the link; then end every open request with a failure.

        Raises:
            WireError: the host sent something that is not our protocol.
        """
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._outbox.run)
                await self._read()
                tg.cancel_scope.cancel()
        finally:
            self._close()

    async def _read(self) -> None:
        while True:
            try:
                data = await self._stream.receive(RECEIVE_BYTES)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            for message in self._reader.feed(data):
                self._handle(message)

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
