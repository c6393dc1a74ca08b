"""A host ends with its router, whatever both were doing.

In order, the wire thread sees the end of the link and stops the device. This is for when it cannot: a long computation
holds Python's lock, or the process is stopped.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
GRACE_S: Final = 1.5
"""What the wire thread has for an orderly end."""

_HUNG_UP: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent's thread ends, stopped or not. Linux has this; others do not."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def watch_link(link: socket.socket) -> None:
    """End this process when the other end of ``link`` is closed and nothing else has ended it for :data:`GRACE_S`."""
    threading.Thread(target=_watch, args=(link.dup(),), name="orphan", daemon=True).start()


def _watch(link: socket.socket) -> None:
    poll = select.poll()
    poll.register(link, _HUNG_UP)
    while not any(events & _HUNG_UP for _, events in poll.poll()):
        pass
    time.sleep(GRACE_S)
    os._exit(1)
