"""Memory that MLX has freed, and keeps for whatever is computed next.

vllm-mlx 0.6 gives all of it back to the system whenever a sequence ends, and every eighth step of a batch of 32 besides
(``_cleanup_finished`` and ``step`` of ``vllm_mlx/scheduler.py``), because MLX sets it no useful limit. Whoever steps
next, of either lane, then allocates everything anew. Here it has a limit instead, and goes when a model goes.
"""

from __future__ import annotations

from typing import Any, Final

import mlx.core as mx
from vllm_mlx import scheduler

SHARE: Final = 0.05
"""Of the device's memory: on one of 16 GiB, as much as the KV caches of a batch take that is copied."""


def keep(device_bytes: int | None) -> None:
    """Let no scheduler of this process give free memory back, and set that a limit.

    Args:
        device_bytes: the device's memory; None leaves MLX's limit as it is, which is 32 MiB on a CPU.
    """
    scheduler.mx = _Core()
    if device_bytes is not None:
        mx.set_cache_limit(int(SHARE * device_bytes))


class _Core:
    """``mlx.core``, but for one function."""

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    def clear_cache(self) -> None:
        """Nothing is given back."""
