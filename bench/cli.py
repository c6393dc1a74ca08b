"""``opta-router bench``: measurements, each a ratio between things measured side by side in one run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="opta-router bench", description=__doc__)
    parser.parse_args(argv)
    return 0
