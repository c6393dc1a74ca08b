"""WebSocket: what a client may send before the handshake is answered (nothing), and in one message."""

from __future__ import annotations

from typing import Any

import h11
from hypercorn.protocol.h11 import H11WSConnection
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer, WSStream


class BoundedMessage(WebsocketBuffer):  # type: ignore[misc]
    """The message that is arriving, refused before it outgrows its limit.

    Hypercorn adds first and asks afterwards, and goes on adding while the peer ignores the close frame.
    """

    overflowed = False

    def extend(self, event: Any) -> None:
        """Add a part of the message.

        Raises:
            FrameTooLargeError: it would exceed the limit; from then on, always.
        """
        self.overflowed = self.overflowed or self.length + len(event.data) > self.max_length
        if self.overflowed:
            self.clear()
            raise FrameTooLargeError
        super().extend(event)


class StrictWSConnection(H11WSConnection):  # type: ignore[misc]
    """An upgraded HTTP/1.1 connection that ends with a client that breaks the rules.

    Hypercorn answers data before the handshake with 400 and then forgets the application, which waits for ever.
    """

    def __init__(self, upgraded: H11WSConnection, stream: WSStream) -> None:
        self.buffer = upgraded.buffer
        self.h11_connection = upgraded.h11_connection
        self._stream = stream

    def next_event(self) -> Any:
        """As Hypercorn's.

        Raises:
            h11.RemoteProtocolError: data came before the handshake's answer, or a message was too large.
        """
        if self.buffer and not self._stream.handshake.accepted:
            raise h11.RemoteProtocolError("WebSocket data before the handshake was answered")
        if self._stream.buffer.overflowed:
            raise h11.RemoteProtocolError("WebSocket message too large")
        return super().next_event()


def bound(stream: WSStream) -> None:
    """Put a `BoundedMessage` in place of the buffer that Hypercorn made, before anything is in it."""
    stream.buffer = BoundedMessage(stream.config.websocket_max_message_size)
