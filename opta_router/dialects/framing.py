"""Server-sent events, as bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from typing import Final

CONTENT_TYPE: Final = b"text/event-stream; charset=utf-8"
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment: clients skip it, and whoever closes idle connections on the way sees a byte."""


def sse(data: bytes, name: str | None = None) -> bytes:
    """One event. ``data`` is a single line, as a JSON encoder writes it."""
    event = b"data: " + data + b"\n\n"
    return event if name is None else b"event: " + name.encode("ascii") + b"\n" + event
