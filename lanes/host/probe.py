"""What is installed and what it runs on, found by looking."""

from __future__ import annotations

import inspect
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

from lanes import wire
from lanes.blas import loaded_blas

CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's bound on memory stands (version 2 and 1)."""


def versions() -> wire.Versions:
    """The engines of this process. Imports mlx's core, which takes milliseconds, and nothing else of it."""
    import mlx.core as mx  # noqa: PLC0415

    return wire.Versions(
        mlx=metadata.version("mlx"),
        mlx_lm=metadata.version("mlx-lm"),
        vllm_mlx=metadata.version("vllm-mlx"),
        device=_device(mx),
        blas=loaded_blas() if mx.default_device() == mx.cpu else None,
        memory_bytes=memory_bytes(mx),
    )


def speculation_paths(target: Any) -> tuple[wire.CallPath, ...]:
    """Which call path speculation can take in each lane with ``target``, from the signatures of what is installed."""
    from mlx_lm.models import cache  # noqa: PLC0415
    from vllm_mlx import SchedulerConfig  # noqa: PLC0415

    wanted = ((type(target).__call__, ("cache",)), (cache.trim_prompt_cache, ("cache", "num_tokens")))
    problems = [problem for function, names in wanted if (problem := _lacks(function, *names))]
    rounds = f"mlx-lm {metadata.version('mlx-lm')}: rounds over the target's own cache, trim_prompt_cache"
    drafts = [name for name in inspect.signature(SchedulerConfig).parameters if "draft_model" in name]
    batched = f"vllm-mlx {metadata.version('vllm-mlx')}: Scheduler"
    no_draft = None if drafts else "its SchedulerConfig takes no draft model"
    return (
        wire.CallPath("interactive", rounds, "; ".join(problems) or None),
        wire.CallPath("throughput", batched, no_draft or "a draft model in a batch is not driven by this engine"),
    )


def _lacks(function: Any, *names: str) -> str | None:
    """What is missing among the parameters of ``function``, in words."""
    parameters = inspect.signature(function).parameters
    missing = [name for name in names if name not in parameters]
    where = f"{function.__module__}.{function.__qualname__}"
    return f"{where} takes no {', '.join(missing)}: it takes {', '.join(parameters)}" if missing else None


def memory_bytes(mx: Any) -> int:
    """What the device can use: of a GPU its own or its share of the machine's, else the container's or machine's."""
    info = mx.device_info()
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if mx.default_device() != mx.cpu and info.get(name):
            return int(info[name])
    limits = [psutil.virtual_memory().total]
    for file in CGROUP_LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):
            continue  # no such version of cgroups, or "max"
    return int(min(limits))


def _device(mx: object) -> str:
    info = mx.device_info()  # type: ignore[attr-defined]
    if mx.default_device() == mx.cpu:  # type: ignore[attr-defined]
        return "cpu"
    backend = "metal" if mx.metal.is_available() else "cuda"  # type: ignore[attr-defined]
    return f"{backend}: {info.get('device_name', 'unknown')}"
