"""Tools from Debian and npm that the proofs run, fetched once into an ignored folder of the repository.

They come of one Debian release, whatever release the machine has: its packages are unpacked, not installed. All of them
are Go programs that need no more of the system than its C library.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "observability"
SUITE = "trixie"
"""The oldest release whose victoria-metrics takes OTLP, and whose docker-compose knows the compose specification."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TRACEQL_GRAMMAR = "@grafana/lezer-traceql@1.0.0"
DOWNLOAD_DEADLINE_S = 300


@cache
def debian(package: str, program: str) -> Path:
    """A program of a Debian package."""
    if shutil.which("apt-get") is None or not Path(KEYRING).is_file():
        pytest.skip(f"{program} comes from a Debian package, and this is no Debian")
    with _locked(CACHE / SUITE) as folder:
        found = folder / package / "usr" / "bin" / program
        if not found.is_file():
            _unpack(package, folder)
        return found


@cache
def traceql_grammar() -> Path:
    """The folder that node finds Grafana's TraceQL grammar from."""
    if shutil.which("npm") is None:
        pytest.skip("TraceQL is parsed by Grafana's own grammar, which needs node and npm")
    with _locked(CACHE / "npm") as folder:
        if not (folder / "node_modules" / "@grafana" / "lezer-traceql").is_dir():
            _run(folder, "npm", "install", "--no-audit", "--no-fund", "--prefix", ".", TRACEQL_GRAMMAR)
        return folder


def _unpack(package: str, folder: Path) -> None:
    options = [
        f"-oDir::Etc::sourcelist={folder}/sources.list",
        "-oDir::Etc::sourceparts=-",
        f"-oDir::State::lists={folder}/lists",
        f"-oDir::Cache={folder}/apt",
        # As root apt would become another user, who cannot write here.
        "-oAPT::Sandbox::User=root",
    ]
    sources = folder / "sources.list"
    if not sources.is_file():
        for needed in ("lists/partial", "apt/archives/partial"):
            (folder / needed).mkdir(parents=True, exist_ok=True)
        sources.write_text(f"deb [signed-by={KEYRING}] {_mirror(folder)} {SUITE} main\n", encoding="utf-8")
    download = ("apt-get", *options, "-q", "download", package)
    if not _succeeds(folder, *download):
        # No list of packages yet, or one so old that what it names is gone.
        _run(folder, "apt-get", *options, "-q", "update")
        _run(folder, *download)
    (archive,) = folder.glob(f"{package}_*.deb")
    _run(folder, "dpkg", "-x", archive.name, package)
    archive.unlink()


def _mirror(folder: Path) -> str:
    """Where this machine has its own Debian from."""
    targets = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages")
    listed = _run(folder, *targets)
    if not listed:
        _run(folder, "apt-get", "-q", "update")
        listed = _run(folder, *targets)
    return next(uri for uri in listed.split() if uri.rstrip("/").endswith("/debian"))


def _succeeds(folder: Path, *command: str) -> bool:
    return _done(folder, *command).returncode == 0


def _run(folder: Path, *command: str) -> str:
    done = _done(folder, *command)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def _done(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_DEADLINE_S, check=False)


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
