"""Server-sent events, as bytes (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from typing import Final

CONTENT_TYPE: Final = b"text/event-stream; charset=utf-8"
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment: clients skip it, and whoever closes idle connections on the way sees a byte."""


def sse(data: bytes) -> bytes:
    """One event. ``data`` is a single line, as a JSON encoder writes it."""
    return b"data: " + data + b"\n\n"
