"""Log lines on their way out: from a thread, so that a disk or a pipe that stalls never holds up the event loop."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from typing import Final

MAX_LINES: Final = 10_000
CLOSE_S: Final = 2.0


class LogWriter(logging.Handler):
    """Writes each record as one line to a file descriptor. What cannot be written is lost, and counted in ``dropped``.

    Args:
        descriptor: where to; it stays open.
        max_lines: how many may wait.
    """

    def __init__(self, descriptor: int, max_lines: int = MAX_LINES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(max_lines)
        self._torn = False
        self._full = 0
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="opta-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were lost: because too many waited, or the file took no more."""
        return self._full + self._lost

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            self._lines.put_nowait(self.format(record).encode(errors="replace") + b"\n")
        except queue.Full:
            self._full += 1
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A record that cannot be formatted is a line that is lost: its message may be half a prompt."""
        self._lost += 1

    def close(self) -> None:
        """Write what waits, for :data:`CLOSE_S` at most."""
        deadline_s = time.monotonic() + CLOSE_S
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            try:
                self._lines.put(None, timeout=0.05)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        super().close()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write(line)

    def _write(self, line: bytes) -> None:
        # A line that was cut off must not spoil the one after it.
        left = b"\n" + line if self._torn else line
        try:
            while left:
                written = os.write(self._descriptor, left)
                left = left[written:]
                self._torn = bool(left)
        except OSError:
            self._lost += 1
