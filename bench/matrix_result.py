"""A result of ``bench matrix`` as it is kept: JSON for ``bench gate``, a table and a picture for people."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.matrix_figures import Cell, Comparison, LaneComparison
from bench.matrix_plan import Plan, Subject
from bench.matrix_report import markdown_report, picture
from policies.errors import ConfigError


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """A result, as it is kept."""

    machine: str
    device: str
    date: str
    version: str
    plan: Plan
    subjects: tuple[Subject, ...]
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    lane_comparisons: tuple[LaneComparison, ...]


def report(matrix: Matrix) -> str:
    """The tables, as Markdown."""
    where = f"{matrix.machine}, {matrix.device}, {matrix.date}"
    return markdown_report(where, matrix.cells, matrix.comparisons, matrix.lane_comparisons)


def write(matrix: Matrix, file: Path) -> None:
    """``file`` with the suffixes ``.json``, ``.md`` and, with the ``bench`` extra, ``.svg``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(matrix), indent=1) + b"\n")
    image = picture(matrix.comparisons, file.with_suffix(".svg"))
    shown = f"\n![tokens/s with speculation, as a multiple of those without]({image.name})\n" if image else ""
    file.with_suffix(".md").write_text(report(matrix) + shown, "utf-8")


def read(file: Path) -> Matrix:
    """A result that was kept. Raises ConfigError if there is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Matrix)
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(f"is not a result of bench matrix: {exc}", file=file) from exc
