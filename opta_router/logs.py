"""The log: a line for a person at a terminal, JSON for whatever collects it, each with the request that it is about."""

from __future__ import annotations

import datetime
import logging
import re
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias

import msgspec

from opta_router.log_writer import LogWriter
from opta_router.telemetry.histograms import Identity

LogFormat: TypeAlias = Literal["auto", "json", "text"]
"""``auto``: text on a terminal, else JSON."""

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_STANDARD_DESCRIPTOR: Final = 2


class Subject(msgspec.Struct, frozen=True):
    """The request that what is logged is about. ``traceparent``: its client's, which need not be valid."""

    request_id: str
    identity: Identity | None = None
    traceparent: str | None = None

    def fields(self) -> dict[str, str]:
        """As they stand in a line. A request that is not traced here may be part of its client's trace."""
        found = {"request_id": self.request_id}
        if self.identity is not None:
            found["trace_id"] = f"{self.identity.trace_id:032x}"
            found["span_id"] = f"{self.identity.span_id:016x}"
        elif self.traceparent is not None and (parts := _TRACEPARENT.fullmatch(self.traceparent[:64])):
            found["trace_id"] = parts[1]
        return found


subject: ContextVar[Subject | None] = ContextVar("subject", default=None)
"""Set by who begins a request, in its task."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message; the request's ids; ``extra={"fields": {…}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """See the library's."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """For people: the same, without the fields, for the message says them."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See the library's."""
        request_id = _about().get("request_id")
        return super().formatMessage(record) + (f" [{request_id}]" if request_id is not None else "")


def start_log(level: str, log_format: LogFormat, *, terminal: bool) -> LogWriter:
    """Send everything that is logged from now on to the standard error. Whoever calls this closes it.

    Args:
        level: as :mod:`logging` names it.
        log_format: see :data:`LogFormat`.
        terminal: whether the standard error is one.
    """
    writer = LogWriter(_STANDARD_DESCRIPTOR)
    as_text = log_format == "text" or (log_format == "auto" and terminal)
    writer.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level, handlers=[writer], force=True)
    return writer


def _about() -> dict[str, str]:
    found = subject.get()
    return {} if found is None else found.fields()
