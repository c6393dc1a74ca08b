"""A pytest plugin: engines that run in pytest's own process get the BLAS that a host would get.

A library is preloaded when a process starts or not at all: pytest is started again, once, before it has done a thing.
"""

import os
import sys
from typing import Any

from lanes.blas import preload_environment

_environment = preload_environment(os.environ)
if _environment.get("LD_PRELOAD") != os.environ.get("LD_PRELOAD"):
    os.execve(sys.executable, sys.orig_argv, _environment)  # noqa: S606 - ourselves


def pytest_configure(config: Any) -> None:
    """Tests side by side share the cores; OpenBLAS spins while it waits, so each run gets its part of them."""
    processes = config.getoption("numprocesses", default=None)
    if processes:
        threads = max(1, (os.cpu_count() or 1) // processes)
        os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
