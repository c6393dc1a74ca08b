"""What fetching programs from Debian's archive or npm's into an ignored folder takes, whatever they are for."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache"
DEADLINE_S = 300


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """No other test run is in here meanwhile; ``lock`` is made, with the folder that it is in."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(*command: str, cwd: Path) -> str:
    """What the command prints. Raises RuntimeError, with what it complained of."""
    ran = _ran(command, cwd)
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def succeeds(*command: str, cwd: Path) -> bool:
    """Whether the command ends well."""
    return _ran(command, cwd).returncode == 0


def _ran(command: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
