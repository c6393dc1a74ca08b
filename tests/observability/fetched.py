"""Tools from Debian and npm that the proofs run, fetched once into an ignored folder of the repository.

They come of one Debian release, whatever release the machine has: its packages are unpacked, not installed. All of them
are Go programs that need no more of the system than its C library.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.fetched import CACHE as ALL
from tests.fetched import locked, run, succeeds

ROOT = Path(__file__).parents[2]
CACHE = ALL / "observability"
SUITE = "trixie"
"""The oldest release whose victoria-metrics takes OTLP, and whose docker-compose knows the compose specification."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TRACEQL_GRAMMAR = "@grafana/lezer-traceql@1.0.0"


@cache
def debian(package: str, program: str) -> Path:
    """A program of a Debian package."""
    if shutil.which("apt-get") is None or not Path(KEYRING).is_file():
        pytest.skip(f"{program} comes from a Debian package, and this is no Debian")
    folder = CACHE / SUITE
    with locked(folder / "lock"):
        found = folder / package / "usr" / "bin" / program
        if not found.is_file():
            _unpack(package, folder)
        return found


@cache
def traceql_grammar() -> Path:
    """The folder that node finds Grafana's TraceQL grammar from."""
    if shutil.which("npm") is None:
        pytest.skip("TraceQL is parsed by Grafana's own grammar, which needs node and npm")
    folder = CACHE / "npm"
    with locked(folder / "lock"):
        if not (folder / "node_modules" / "@grafana" / "lezer-traceql").is_dir():
            run("npm", "install", "--no-audit", "--no-fund", "--prefix", ".", TRACEQL_GRAMMAR, cwd=folder)
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
    if not succeeds(*download, cwd=folder):
        # No list of packages yet, or one so old that what it names is gone.
        run("apt-get", *options, "-q", "update", cwd=folder)
        run(*download, cwd=folder)
    (archive,) = folder.glob(f"{package}_*.deb")
    run("dpkg", "-x", archive.name, package, cwd=folder)
    archive.unlink()


def _mirror(folder: Path) -> str:
    """Where this machine has its own Debian from."""
    targets = ("apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages")
    listed = run(*targets, cwd=folder)
    if not listed:
        run("apt-get", "-q", "update", cwd=folder)
        listed = run(*targets, cwd=folder)
    return next(uri for uri in listed.split() if uri.rstrip("/").endswith("/debian"))
