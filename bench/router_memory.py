"""``python -m bench.router_memory FILE ARGUMENT…``: ``opta-router ARGUMENT…`` that says on SIGUSR1 what it holds.

What a process occupies is what it held at its fullest moment, and how that was scattered: pages in which one object is
left stay with it. It jumps by megabytes between two equal rounds, and a small leak hides in pages that are half empty.
What is *held* is exact: the blocks that Python has given out and not got back, and the bytes that the C library has.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Final

import anyio
import msgspec

from opta_router.cli import main

ANSWER_TIMEOUT_S: Final = 10.0


class Held(msgspec.Struct, frozen=True):
    """After a collection. ``blocks`` are those of Python's allocator, whatever their size.

    ``malloc_bytes`` are the C library's, in them Python's blocks of more than 512 bytes; None where it does not say.
    """

    blocks: int
    malloc_bytes: int | None


class _Mallinfo2(ctypes.Structure):
    """glibc's, since 2.33: what it took from the system, and what of that is given out."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def held() -> Held:
    """What this process holds."""
    gc.collect()
    return Held(sys.getallocatedblocks(), _malloc_bytes())


def _malloc_bytes() -> int | None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Mallinfo2
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


async def held_by(pid: int, file: Path) -> Held:
    """What the process ``pid`` holds, which was started as above with ``file``.

    Raises:
        TimeoutError: it does not answer.
    """
    answer = anyio.Path(file)
    await answer.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    with anyio.fail_after(ANSWER_TIMEOUT_S):
        while not await answer.exists():  # noqa: ASYNC110 - another process has no event
            await anyio.sleep(0.01)
    return msgspec.json.decode(await answer.read_bytes(), type=Held)


def _answer_signals(file: Path) -> None:
    def write(_number: int, _frame: FrameType | None) -> None:
        partial = file.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(held()))
        partial.replace(file)

    signal.signal(signal.SIGUSR1, write)


if __name__ == "__main__":
    _answer_signals(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
