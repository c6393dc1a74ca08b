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
    assert blas.preload_environment({**given, "HOME": "/root"}) == {"HOME": "/root", "LD_PRELOAD": after}
    assert before == given


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
