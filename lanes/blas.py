"""Finding a fast BLAS for MLX on a Linux CPU.

The Linux ``mlx-cpu`` wheel links the reference BLAS, about thirty times slower than OpenBLAS in fp32. Preloading
OpenBLAS into the host process replaces it. Where the system has none, the wheel of opencv-python, which vllm-mlx
depends on, has brought one: of the OpenBLAS builds in Python wheels, the one that keeps the usual symbol names.
"""

from __future__ import annotations

import ctypes.util
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

_PATTERNS = (
    "lib/*/openblas-pthread/libopenblas.so.0",
    "lib/*/libopenblas.so.0",
    "lib64/libopenblas.so.0",
    "lib64/libopenblasp.so.0",
    "lib/libopenblas.so.0",
)
_WHEEL_PATTERN = "opencv_python*.libs/libopenblas*.so"


def find_openblas(root: Path = Path("/usr"), packages: Path | None = None) -> Path | None:
    """The shared library to preload, or None where the machine has none or needs none.

    Args:
        root: where the system keeps its libraries.
        packages: where Python keeps its packages; None: this Python's place.
    """
    if sys.platform != "linux":
        return None
    for pattern in _PATTERNS:
        for found in sorted(root.glob(pattern)):
            return found
    for bundled in sorted((packages or Path(sysconfig.get_path("platlib"))).glob(_WHEEL_PATTERN)):
        return bundled
    name = ctypes.util.find_library("openblas")
    return Path(name) if name else None


def preload_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with OpenBLAS preloaded, unless it names a BLAS to preload already."""
    preloaded = environment.get("LD_PRELOAD", "")
    library = find_openblas()
    if library is None or "blas" in preloaded:
        return dict(environment)
    return {**environment, "LD_PRELOAD": f"{library} {preloaded}".strip()}


def loaded_blas(maps: Path = Path("/proc/self/maps")) -> str | None:
    """The BLAS libraries mapped into this process, by file name; None where that cannot be read."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return None
    names = {Path(line.split(maxsplit=5)[-1]).name for line in lines if "blas" in line.rsplit("/", 1)[-1]}
    return next((name for name in sorted(names) if "openblas" in name), next(iter(sorted(names)), None))
