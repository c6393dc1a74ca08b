"""What is installed and what it runs on, found by looking."""

from __future__ import annotations

from importlib import metadata

from lanes import wire
from lanes.blas import loaded_blas


def versions() -> wire.Versions:
    """The engines of this process. Imports mlx's core, which takes milliseconds, and nothing else of it."""
    import mlx.core as mx  # noqa: PLC0415

    return wire.Versions(
        mlx=metadata.version("mlx"),
        mlx_lm=metadata.version("mlx-lm"),
        vllm_mlx=metadata.version("vllm-mlx"),
        device=_device(mx),
        blas=loaded_blas() if mx.default_device() == mx.cpu else None,
    )


def _device(mx: object) -> str:
    info = mx.device_info()  # type: ignore[attr-defined]
    if mx.default_device() == mx.cpu:  # type: ignore[attr-defined]
        return "cpu"
    backend = "metal" if mx.metal.is_available() else "cuda"  # type: ignore[attr-defined]
    return f"{backend}: {info.get('device_name', 'unknown')}"
