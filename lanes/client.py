"""The router's side of a link to a host: submit requests, receive their events.

One :class:`Link` multiplexes all requests of one host over one byte stream. It never waits for a slow reader: what a
request's reader has not taken is kept in an inbox of its own, merged to a few events, so one stalled client costs the
memory of its answer's tokens (at most ``max_tokens``) and delays nobody.

A :class:`Generation` outlives its link: it may begin on one, wait, and go on on another. A link knows only those that
were begun on it, and forgets them when it ends, so nothing that an old host says reaches a request on its new one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from anyio.abc import SocketStream

from lanes import wire
from lanes.errors import HostDied, HostUnavailable, RequestRefused, WireError
from lanes.framed import FramedSocket
from lanes.resumption import History, Interrupted, Interruption, Resumed

OnEnd = Callable[[wire.Finished | wire.Failed], None]
OnProgress = Callable[[wire.Delta | wire.Moved], None]
"""Called as an event arrives, however slowly the answer is read."""

OnInterruption = Callable[[Interruption], None]


class Generation:
    """One request, from submission to its last event.

    Args:
        submit: the request. Its id is unique among those that have not ended.
        on_end: called exactly once, from the event loop, as the others are.
        on_progress: see :data:`OnProgress`.
        on_interruption: told when its host is gone, and when it goes on.
    """

    def __init__(
        self,
        submit: wire.Submit,
        on_end: OnEnd,
        on_progress: OnProgress | None = None,
        on_interruption: OnInterruption | None = None,
    ) -> None:
        self.history = History(submit)
        self._on_end = on_end
        self._on_progress = on_progress
        self._on_interruption = on_interruption
        self._link: Link | None = None
        self._inbox: deque[wire.Event] = deque()
        self._arrived = asyncio.Event()
        self.ended = False

    @property
    def request_id(self) -> str:
        """The submission's."""
        return self.history.asked.request_id

    async def receive(self) -> list[wire.Event]:
        """All events that have arrived and were not yet received; waits for at least one.

        Deltas that nobody received in time are joined: the tokens, their order and their indices are those of the host.

        Raises:
            HostDied: the host went away before the request's last event, and no other takes it.
            RequestRefused: the host failed the request, or hosts died of it.
        """
        while not self._inbox:
            if self.ended:
                raise HostDied(f"request {self.request_id}: no more events")
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
        """Nobody wants the answer any more. Its slot is free when ``on_end`` was called: one device step later, or at
        once if no host has the request.
        """
        if self.ended:
            return
        self.history.cancelled = True
        if self._link is not None:
            self._link.send_soon(wire.Cancel(self.request_id))
        else:
            self.end(self.history.cancellation())

    def move(self, lane: wire.Lane) -> None:
        """Ask the host to go on in another lane; :class:`lanes.wire.Moved` says where it does."""
        if self.ended:
            return
        self.history.asked_to_move(lane)
        if self._link is not None:
            self._link.send_soon(wire.Move(self.request_id, lane))

    def end(self, event: wire.Finished | wire.Failed) -> None:
        """Its last event."""
        self._link = None
        self.ended = True
        self._inbox.append(event)
        self._on_end(event)
        self._arrived.set()

    def begin_on(self, link: Link) -> None:
        """Go to a host: the first, or another one."""
        self._link = link
        resumed = self.history.hosts > 0
        moved = self.history.settle_move()
        link.send_soon(self.history.submission())
        if resumed and self._on_interruption is not None:
            self._on_interruption(Resumed(self.history.emitted_tokens))
        if moved is not None:
            self._tell(moved)

    def lost(self, *, on_trial: bool, loading: bool = False) -> None:
        """Its host is gone; it waits, or ends. See :meth:`lanes.resumption.History.host_died`."""
        self._link = None
        end = self.history.host_died(on_trial=on_trial, loading=loading)
        if end is not None:
            self.end(end)
        elif self._on_interruption is not None:
            self._on_interruption(Interrupted())

    def deliver(self, event: wire.Event) -> None:
        """Take what the host says of it.

        Raises:
            WireError: it cannot be so.
        """
        match event:
            case wire.Delta():
                self._grow(event)
            case wire.Moved():
                if not self.history.moving:
                    raise WireError(f"request {event.request_id}: moved, though nobody asked for it")
                self.history.moved(event.lane)
                self._tell(event)
            case wire.Started():
                if not self.history.prompt_tokens:  # of the first host; the others say it again
                    self._inbox.append(event)
                    self._arrived.set()
                self.history.started(event)
            case wire.Finished():
                self.history.finished(event)
                self.end(event)
            case wire.Failed():
                self.end(event)

    def _grow(self, delta: wire.Delta) -> None:
        expected = self.history.emitted_tokens
        if delta.index != expected:
            raise WireError(f"request {delta.request_id}: delta at token {delta.index}, expected {expected}")
        self.history.grew(delta)
        if self._on_progress is not None:
            self._on_progress(delta)
        self._inbox.append(self._merged_into(delta))
        self._arrived.set()

    def _tell(self, moved: wire.Moved) -> None:
        if self._on_progress is not None:
            self._on_progress(moved)
        self._inbox.append(moved)
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
            delta = wire.Delta(
                delta.request_id,
                last.index,
                last.token_ids + delta.token_ids,
                last.text + delta.text,
                delta.speculative,
                last.drafted + tuple((begin + len(last.text), end + len(last.text)) for begin, end in delta.drafted),
            )
        return delta


class Link:
    """A connection to a host that has said Hello.

    Args:
        stream: see :class:`lanes.framed.FramedSocket`.
        on_message: receives everything that is not an event of a request.
        on_settled: a request that began on this link has got going, or has ended; see
            :attr:`lanes.resumption.History.going`.
    """

    def __init__(
        self,
        stream: SocketStream,
        *,
        on_message: Callable[[wire.FromHost], None],
        on_settled: Callable[[Generation], None],
    ) -> None:
        self._on_message = on_message
        self._on_settled = on_settled
        self._socket: FramedSocket[wire.FromHost] = FramedSocket(stream, wire.FromHost, self._handle)
        self.closed = False
        self._generations: dict[str, Generation] = {}
        self.unsettled: set[str] = set()
        self.heard = 0

    @property
    def active(self) -> int:
        """Requests begun and not ended."""
        return len(self._generations)

    def begin(self, generation: Generation) -> None:
        """Hand a request to the host.

        Raises:
            HostUnavailable: the link is closed.
        """
        if self.closed:
            raise HostUnavailable("the engine is not running")
        if generation.request_id in self._generations:
            raise ValueError(f"request id {generation.request_id!r} is in use")
        self._generations[generation.request_id] = generation
        self.unsettled.add(generation.request_id)
        generation.begin_on(self)

    def send_soon(self, message: wire.ToHost) -> None:
        """Queue a message; it is written by :meth:`run`. Does nothing on a closed link."""
        if not self.closed:
            self._socket.put(message)

    async def run(self) -> None:
        """Pump both directions until the host closes the link.

        Raises:
            WireError: the host sent something that is not our protocol.
        """
        try:
            await self._socket.run()
        finally:
            self.closed = True

    def close(self) -> list[Generation]:
        """Take nothing more. Returns the requests that have not ended, and forgets them: they may go elsewhere.

        :attr:`unsettled` still says which of them had not got going here.
        """
        self.closed = True
        generations, self._generations = self._generations, {}
        return list(generations.values())

    def _handle(self, message: wire.FromHost) -> None:
        self.heard += 1
        if not isinstance(message, wire.Events):
            self._on_message(message)
            return
        for event in message.items:
            generation = self._generations.get(event.request_id)
            if generation is None:
                continue  # ended here already
            last = isinstance(event, wire.Finished | wire.Failed)
            if last:
                del self._generations[event.request_id]
            generation.deliver(event)
            if event.request_id in self.unsettled and (last or generation.history.going):
                self.unsettled.discard(event.request_id)
                self._on_settled(generation)
