"""Routers that the tests of this folder share."""

import tempfile
from pathlib import Path

import pytest

from tests.e2e.router_process import router

OVERLOAD = """
models:
  - {name: echo, target: "scripted:tokens_per_step=1,step_s=0.002", preload: true}
lanes:
  interactive: {max_active: 1, max_queue: 1, queue_timeout: 60s}
  throughput: {max_active: 1, max_queue: 1, queue_timeout: 2s}
"""


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The product as it comes: the embedded pair, no configuration."""
    with router(tmp_path_factory.mktemp("pair")) as running:
        yield running


@pytest.fixture(scope="session")
def narrow(tmp_path_factory):
    """Lanes with one slot and one place to wait, and a model that echoes its prompt for as long as it is asked to."""
    with router(tmp_path_factory.mktemp("narrow"), OVERLOAD) as running:
        yield running


@pytest.fixture
def socket_root(monkeypatch):
    """Where sockets' directories are made; short, for a Unix socket's path is limited to about a hundred bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as root:
        monkeypatch.setattr(tempfile, "tempdir", root)
        yield Path(root)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """Targets and drafts on the disk, by name."""
    from tests.tiny_pairs import make, shifted, templated  # takes seconds, which most tests here need not spend

    folder = tmp_path_factory.mktemp("parts")
    return {
        "target": make(folder / "target"),
        "draft": make(folder / "draft", num_hidden_layers=1),
        "shifted": shifted(make(folder / "shifted", num_hidden_layers=1)),
        "templated": templated(make(folder / "templated", num_hidden_layers=1)),
        "mamba": make(folder / "mamba", "mamba"),
        "gemma": make(folder / "gemma", "gemma3_text"),
    }
