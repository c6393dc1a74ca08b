"""What every benchmark says in the same way: the machine, promises held against bounds, figures kept in a file."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec


class Bar(msgspec.Struct, frozen=True):
    """One promise, what was measured, and what was promised."""

    promise: str
    measured: float
    bound: float
    kept: bool


def at_most(promise: str, measured: float, bound: float) -> Bar:
    """A promise that ``measured`` does not exceed ``bound``."""
    return Bar(promise, round(measured, 3), round(bound, 3), measured <= bound)


def at_least(promise: str, measured: float, bound: float) -> Bar:
    """A promise that ``measured`` is no less than ``bound``."""
    return Bar(promise, round(measured, 3), round(bound, 3), measured >= bound)


def print_bars(bars: Sequence[Bar]) -> int:
    """Print one line for each; returns the exit status: 0 if all were kept, else 1."""
    for bar in bars:
        print(f"{'ok  ' if bar.kept else 'FAIL'} {bar.promise}: {bar.measured:g} (bound {bar.bound:g})")
    return 0 if all(bar.kept for bar in bars) else 1


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine() -> str:
    """The machine in a few words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def add_save(parser: argparse.ArgumentParser) -> None:
    """The option ``--save``, for :func:`save`."""
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the figures, the machine and the date as JSON")


def save(path: Path | None, figures: dict[str, Any]) -> None:
    """Write ``figures`` with the machine and the date; nothing without a path."""
    if path is None:
        return
    data = msgspec.json.encode({"machine": machine(), "date": today(), **figures})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
