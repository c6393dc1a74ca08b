"""Approvals with their evidence, in the file that ``speculation.approvals_file`` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
import yaml

from bench.gates import Scorecard
from bench.matrix_result import Matrix
from policies.schema import ApprovedPair, PairMeasurement
from policies.speculation import SpecMatrix, read_matrix

HEADER: Final = (
    "# Pairs that may speculate, each with the run that showed it. Written by `opta-router bench gate --approve`.\n"
)


class NotReadyError(Exception):
    """The run does not show that the pair should speculate."""


def approval(scorecard: Scorecard, matrix: Matrix, result: Path) -> ApprovedPair:
    """The entry for a pair, citing the ``result`` that the scorecard was made of.

    Raises:
        NotReadyError: see there.
    """
    subject = scorecard.subject
    if scorecard.verdict != "READY" or subject.draft is None:
        failed = ", ".join(bar.promise for bar in scorecard.failed)
        raise NotReadyError(f"{subject.model} is not ready: {failed}")
    return ApprovedPair(
        target=subject.target,
        draft=subject.draft,
        evidence=str(result),
        measured=PairMeasurement(
            date=matrix.date, machine=f"{matrix.machine}, {matrix.device}", figures=scorecard.figures
        ),
    )


def write_approvals(file: Path, entries: list[ApprovedPair]) -> None:
    """Put ``entries`` into ``file``, each in place of an older one of its pair; the others stay. Atomic.

    Raises:
        ConfigError: what is in the file is no approval matrix.
    """
    known = read_matrix(file) if file.exists() else SpecMatrix()
    pairs = {(entry.target, entry.draft) for entry in entries}
    kept = [entry for entry in known.approved if (entry.target, entry.draft) not in pairs]
    data = {"approved": [_plain(entry) for entry in (*kept, *entries)], "denied": [_plain(one) for one in known.denied]}
    written = HEADER + yaml.safe_dump({key: value for key, value in data.items() if value}, sort_keys=False, width=120)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    scratch.write_text(written, "utf-8")
    scratch.replace(file)


def _plain(entry: msgspec.Struct) -> dict[str, object]:
    fields: dict[str, object] = msgspec.to_builtins(entry)
    return {name: value for name, value in fields.items() if value is not None}
