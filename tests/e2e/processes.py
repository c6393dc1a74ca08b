"""What other processes do in their own time, and what they hold, as the system tells."""

import os
import subprocess
import time
from collections.abc import Callable

DEADLINE_S = 30.0


def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds; AssertionError if it never does."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.02)


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM."""
    kib = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    return int(kib) * 1024


def descriptors(pid: int) -> int:
    """Descriptors that a process holds (Linux)."""
    return len(os.listdir(f"/proc/{pid}/fd"))
