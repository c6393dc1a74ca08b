"""Finding a fast BLAS for MLX on a Linux CPU.

The Linux ``mlx-cpu`` wheel links the reference BLAS, about thirty times slower than OpenBLAS in fp32. Preloading
OpenBLAS into the host process replaces it. Where the system has none, the wheel of opencv-python, which vllm-mlx
depends on, has brought one: of the OpenBLAS builds in Python wheels, the one that keeps the usual symbol names.

An OpenBLAS that is older than the processor falls back to kernels of 2004 (measured on a Xeon of 2023 with 0.3.15: 33
GFLOP/s, where the kernels that it has for the same instructions give 302): then it is told which to take.
"""

from __future__ import annotations

import ctypes.util
import functools
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_PATTERNS = (
    "lib/*/openblas-pthread/libopenblas.so.0",
    "lib/*/libopenblas.so.0",
    "lib64/libopenblas.so.0",
    "lib64/libopenblasp.so.0",
    "lib/libopenblas.so.0",
)
_WHEEL_PATTERN = "opencv_python*.libs/libopenblas*.so"

_FALLBACK_KERNELS: Final = "Prescott"
_KERNELS: Final = (
    ("SkylakeX", frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"})),
    ("Haswell", frozenset({"avx2", "fma"})),
)
"""OpenBLAS's names for its kernels, best first, and the instructions that each needs."""

_THREAD_TIMEOUT: Final = "10"
"""How long a thread of OpenBLAS that waits for work stays awake, as a power of two in cycles: not at all.

By default it is a tenth of a second, and so all the time while a model computes: on two cores that thread took half of
one from the router, and from the operations that MLX does beside. The throughput lane's tokens/s over HTTP with eight
streams were 0.7 of what they are now (``bench batch``).
"""


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
    """``environment`` with OpenBLAS preloaded, unless it names a BLAS to preload already.

    ``OPENBLAS_CORETYPE`` is added where the library would not use what the processor has, and
    ``OPENBLAS_THREAD_TIMEOUT``, which see :data:`_THREAD_TIMEOUT`.
    """
    preloaded = environment.get("LD_PRELOAD", "")
    library = find_openblas()
    if library is None or "blas" in preloaded:
        return dict(environment)
    kernels = better_kernels(library)
    forced = {"OPENBLAS_CORETYPE": kernels} if kernels is not None else {}
    defaults = {**forced, "OPENBLAS_THREAD_TIMEOUT": _THREAD_TIMEOUT}
    return {**defaults, **environment, "LD_PRELOAD": f"{library} {preloaded}".strip()}


@functools.cache
def better_kernels(library: Path) -> str | None:
    """The kernels that ``library`` should be told to use, as it takes the processor for one of 2004; None otherwise."""
    if _chosen_kernels(library) != _FALLBACK_KERNELS:
        return None
    flags = _processor_flags(Path("/proc/cpuinfo"))
    return next((name for name, needed in _KERNELS if needed <= flags), None)


def _chosen_kernels(library: Path) -> str | None:
    """What OpenBLAS takes by itself. Asked in a process of its own: it starts a thread for each core when loaded."""
    ask = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).openblas_get_corename; f.restype = ctypes.c_char_p; "
    command = [sys.executable, "-I", "-S", "-c", ask + "print(f().decode())", str(library)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ourselves
    return answer.stdout.strip() if answer.returncode == 0 else None


def _processor_flags(cpuinfo: Path) -> frozenset[str]:
    """The instruction sets of the first processor; empty where that cannot be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def loaded_blas(maps: Path = Path("/proc/self/maps")) -> str | None:
    """The BLAS libraries mapped into this process, by file name; None where that cannot be read."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return None
    names = {Path(line.split(maxsplit=5)[-1]).name for line in lines if "blas" in line.rsplit("/", 1)[-1]}
    return next((name for name in sorted(names) if "openblas" in name), next(iter(sorted(names)), None))
