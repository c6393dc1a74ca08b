"""``bench gate``: hold a matrix against ``gates.yaml``, and say of each pair whether it is ready to speculate.

Reads a result of ``bench matrix``, or measures a short one. With ``--approve`` the pairs that are ready go into a file
of approvals, which cites the result; the configuration takes it as ``speculation.approvals_file``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.approvals import NotReadyError, approval, write_approvals
from bench.gates import GATES_FILE, Scorecard, judge, read_gates
from bench.matrix import add_subject, measure_subject
from bench.matrix_plan import SHORT
from bench.matrix_result import Matrix, read, write
from bench.reporting import print_bars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument(
        "result", type=Path, nargs="?", metavar="RESULT.json", help="of bench matrix; none: a short run"
    )
    parser.add_argument("--gates", type=Path, default=GATES_FILE, metavar="FILE", help="the bounds")
    parser.add_argument("--approve", type=Path, metavar="FILE", help="write the pairs that are ready into this file")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the short run's result")
    add_subject(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge, print, approve; returns 0 if every pair is ready."""
    gates = read_gates(arguments.gates)
    file: Path | None = arguments.result or arguments.save
    if arguments.approve is not None and file is None:
        print("opta-router: --approve needs a RESULT.json, or --save: an approval cites its evidence", file=sys.stderr)
        return 2
    matrix = read(arguments.result) if arguments.result is not None else measure_subject(arguments, SHORT)
    if arguments.result is None and arguments.save is not None:
        write(matrix, arguments.save)
    scorecards = judge(matrix, gates)
    status = report(scorecards, matrix)
    if arguments.approve is not None and file is not None:
        status |= _approve(arguments.approve, scorecards, matrix, file.with_suffix(".json"))
    return status


def report(scorecards: Sequence[Scorecard], matrix: Matrix) -> int:
    """Print them; returns the exit status."""
    print(f"{matrix.plan.profile} matrix of {matrix.date}, {matrix.machine}, {matrix.device}")
    if not scorecards:
        print("FAIL no model has a draft: there is no pair to judge")
        return 1
    status = 0
    for card in scorecards:
        print(f"\n{card.subject.model} ({card.subject.target} with draft {card.subject.draft}): {card.verdict}")
        status |= print_bars(card.bars)
        if card.reasons:
            said = ", ".join(f"{reason} ({answers} answers)" for reason, answers in card.reasons.items())
            print(f"     speculation was not active: {said}")
    return status


def _approve(file: Path, scorecards: Sequence[Scorecard], matrix: Matrix, result: Path) -> int:
    entries, status = [], 0
    for card in scorecards:
        try:
            entries.append(approval(card, matrix, result))
        except NotReadyError as exc:
            print(f"not approved: {exc}", file=sys.stderr)
            status = 1
    if entries:
        write_approvals(file, entries)
        for entry in entries:
            print(f"approved in {file}: {entry.target} with draft {entry.draft}, on the evidence of {entry.evidence}")
    return status
