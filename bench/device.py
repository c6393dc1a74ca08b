"""What MLX runs on here: ``cpu``, ``metal: …`` or ``cuda: …``."""

from __future__ import annotations

import subprocess
import sys


def device() -> str:
    """Asked in a process of its own: this one measures, and mlx would stay in its memory."""
    command = [sys.executable, "-m", "bench.device"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    """Print it."""
    from lanes.host.probe import versions  # noqa: PLC0415

    print(versions().device)


if __name__ == "__main__":
    main()
