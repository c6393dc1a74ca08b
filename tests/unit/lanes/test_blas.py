"""Finding OpenBLAS on a Linux CPU."""

import ctypes
import sys
from pathlib import Path

import pytest

from lanes import blas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels link the reference BLAS")


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)


def library(root, path):
    file = root / path
    file.parent.mkdir(parents=True)
    file.touch()
    return file


@pytest.mark.parametrize(
    "path",
    [
        "lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
        "lib/aarch64-linux-gnu/libopenblas.so.0",
        "lib64/libopenblas.so.0",
        "lib64/libopenblasp.so.0",
        "lib/libopenblas.so.0",
    ],
)
def test_it_is_found_where_distributions_put_it(tmp_path, nothing_installed, path):
    installed = library(tmp_path, path)
    assert blas.find_openblas(tmp_path) == installed


def test_the_threaded_build_is_preferred(tmp_path):
    library(tmp_path, "lib64/libopenblas.so.0")
    threaded = library(tmp_path, "lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0")
    assert blas.find_openblas(tmp_path) == threaded


def test_without_one_the_one_in_a_wheel_will_do(tmp_path):
    bundled = library(tmp_path, "opencv_python.libs/libopenblasp-r0-59ffcd50.3.15.so")
    assert blas.find_openblas(tmp_path / "usr", tmp_path) == bundled
    installed = library(tmp_path / "usr", "lib64/libopenblas.so.0")
    assert blas.find_openblas(tmp_path / "usr", tmp_path) == installed


def test_this_environment_has_one_that_can_be_loaded():
    bundled = blas.find_openblas(Path("/nowhere"))
    assert bundled is not None
    assert hasattr(ctypes.CDLL(str(bundled)), "cblas_sgemm")


def test_none_where_there_is_none_and_then_the_environment_stays(tmp_path, nothing_installed, monkeypatch):
    assert blas.find_openblas(tmp_path, tmp_path) is None
    monkeypatch.setattr(blas, "find_openblas", lambda: None)
    assert blas.preload_environment({"A": "1"}) == {"A": "1"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "/usr/lib/libopenblas.so.0"),
        ({"LD_PRELOAD": "/usr/lib/libjemalloc.so"}, "/usr/lib/libopenblas.so.0 /usr/lib/libjemalloc.so"),
        ({"LD_PRELOAD": "/opt/libblas.so.3"}, "/opt/libblas.so.3"),
    ],
)
def test_it_is_preloaded_beside_what_the_operator_preloads_but_never_over_their_blas(monkeypatch, before, after):
    monkeypatch.setattr(blas, "find_openblas", lambda: "/usr/lib/libopenblas.so.0")
    given = dict(before)
    ours = {"OPENBLAS_THREAD_TIMEOUT": "10"} if "openblas" in after else {}
    assert blas.preload_environment({**given, "HOME": "/root"}) == {"HOME": "/root", "LD_PRELOAD": after, **ours}
    assert before == given


@pytest.mark.parametrize(
    ("chosen", "flags", "better"),
    [
        ("Prescott", "sse2 avx2 fma avx512f avx512bw avx512dq avx512vl avx512cd", "SkylakeX"),
        ("Prescott", "sse2 avx2 fma avx512f", "Haswell"),
        ("Prescott", "sse2", None),
        ("Zen", "sse2 avx2 fma", None),
        (None, "sse2 avx2 fma", None),
    ],
)
def test_better_kernels_are_named_only_for_a_processor_that_the_library_does_not_know(
    monkeypatch, tmp_path, chosen, flags, better
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nflags\t\t: none\n")
    found = blas._processor_flags(cpuinfo)
    monkeypatch.setattr(blas, "_chosen_kernels", lambda library: chosen)
    monkeypatch.setattr(blas, "_processor_flags", lambda path: found)
    assert blas.better_kernels.__wrapped__(Path("libopenblas.so.0")) == better


def test_the_library_of_this_environment_says_which_kernels_it_takes(tmp_path):
    bundled = blas.find_openblas(Path("/nowhere"))
    assert bundled is not None
    assert blas._chosen_kernels(bundled)
    assert blas._chosen_kernels(tmp_path / "absent.so") is None
    assert blas._processor_flags(tmp_path / "absent") == frozenset()


def test_an_operators_choice_of_kernels_stays(monkeypatch):
    monkeypatch.setattr(blas, "find_openblas", lambda: Path("/usr/lib/libopenblas.so.0"))
    monkeypatch.setattr(blas, "better_kernels", lambda library: "Haswell")
    assert blas.preload_environment({})["OPENBLAS_CORETYPE"] == "Haswell"
    assert blas.preload_environment({"OPENBLAS_CORETYPE": "Zen"})["OPENBLAS_CORETYPE"] == "Zen"


def test_its_threads_sleep_while_they_wait_unless_the_operator_wants_them_awake(monkeypatch):
    monkeypatch.setattr(blas, "find_openblas", lambda: Path("/usr/lib/libopenblas.so.0"))
    assert blas.preload_environment({})["OPENBLAS_THREAD_TIMEOUT"] == "10"
    assert blas.preload_environment({"OPENBLAS_THREAD_TIMEOUT": "28"})["OPENBLAS_THREAD_TIMEOUT"] == "28"


def test_the_loaded_blas_is_read_from_the_memory_map(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 42 /usr/lib/x86_64-linux-gnu/libc.so.6\n"
        "7f01-7f02 rw-p 00000000 00:00 0 \n"
        "7f02-7f03 r-xp 00000000 08:01 43 /usr/lib/blas/libm.so.6\n"
        "7f03-7f04 r-xp 00000000 08:01 44 /site packages/mlx/lib/libblas.so.3\n"
    )
    assert blas.loaded_blas(maps) == "libblas.so.3"
    with maps.open("a") as file:
        file.write("7f04-7f05 r-xp 00000000 08:01 45 /usr/lib/openblas-pthread/libopenblas.so.0\n")
    assert blas.loaded_blas(maps) == "libopenblas.so.0"


def test_no_blas_and_no_map_are_both_unknown(tmp_path):
    empty = tmp_path / "maps"
    empty.write_text("7f00-7f01 r-xp 00000000 08:01 42 /usr/lib/libc.so.6\n")
    assert blas.loaded_blas(empty) is None
    assert blas.loaded_blas(tmp_path / "absent") is None
