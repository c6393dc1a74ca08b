"""Messages on a byte stream: a 4-byte big-endian length, then one MessagePack-encoded message. No I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec

from lanes import wire
from lanes.errors import WireError

MAX_FRAME_BYTES: Final = 32 * 1024 * 1024
"""Upper bound of one frame, checked before anything is allocated. A request body is bounded far below it."""

_LENGTH = struct.Struct(">I")
M = TypeVar("M")
_encoder = msgspec.msgpack.Encoder()


def encode(message: wire.ToHost | wire.FromHost) -> bytes:
    """One frame.

    Raises:
        WireError: the message is larger than :data:`MAX_FRAME_BYTES`.
    """
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(f"frame of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return _LENGTH.pack(len(payload)) + payload


class FrameReader(Generic[M]):
    """Cuts a byte stream into messages of one union, without I/O: feed bytes, iterate messages."""

    def __init__(self, union: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[M]:
        """Messages that ``data`` completes.

        Raises:
            WireError: a frame is too long, or not a message of the union. The link must be dropped.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise WireError(f"frame of {length} bytes announced; at most {MAX_FRAME_BYTES} are allowed")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]  # before the message is given out: whoever stops iterating never sees it again
            try:
                message = self._decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                raise WireError(f"malformed frame: {exc}") from exc
            yield message

    @property
    def incomplete(self) -> bool:
        """True if the stream ended in the middle of a frame."""
        return bool(self._buffer)
