"""Programs that a test needs from Debian's archive or from npm's, unpacked into a cache and not installed."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fetched import CACHE as ALL
from tests.fetched import locked, run

CACHE = ALL / "page"


class Unpacked:
    """A root directory with Debian packages in it, and how to run what they hold."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def environment(self) -> dict[str, str]:
        """This process's, with the unpacked libraries in front."""
        # Some libraries lie in folders of their own, which an installed program finds by its absolute run path.
        paths = sorted({str(file.parent) for file in self.root.glob("usr/lib/**/lib*.so*")}, key=len)
        inherited = os.environ.get("LD_LIBRARY_PATH")
        return {**os.environ, "LD_LIBRARY_PATH": ":".join([*paths, *([inherited] if inherited else [])])}


def debian(name: str, *packages: str) -> Unpacked:
    """`packages` and all that they depend on and this machine has not, under `.cache/name`. Fetched once.

    Neither root nor an installation is needed: apt says what is missing and fetches it, dpkg unpacks it.
    """
    root = CACHE / name
    with _once(root) as missing:
        if missing:
            archive = root.with_name(f"{name}-debs")
            archive.mkdir(parents=True, exist_ok=True)
            run("apt-get", "download", *_closure(packages), cwd=archive)
            for deb in sorted(archive.glob("*.deb")):
                run("dpkg", "-x", str(deb), str(root), cwd=archive)
            shutil.rmtree(archive)
    return Unpacked(root)


def npm(package: str, version: str) -> Path:
    """The unpacked tarball of a package of npm's registry, as `npm pack` fetches it. Fetched once."""
    root = CACHE / f"{package.replace('/', '-')}-{version}"
    with _once(root) as missing:
        if missing:
            root.mkdir(parents=True, exist_ok=True)
            run("npm", "pack", "--silent", f"{package}@{version}", cwd=root)
            (tarball,) = root.glob("*.tgz")
            with tarfile.open(tarball) as tar:
                tar.extractall(root, filter="data")
            tarball.unlink()
    return root / "package"


def _closure(packages: tuple[str, ...]) -> list[str]:
    planned = run("apt-get", "--simulate", "--no-install-recommends", "install", *packages, cwd=CACHE)
    return [*packages, *sorted(set(re.findall(r"^Inst (\S+)", planned, re.MULTILINE)) - {*packages})]


@contextmanager
def _once(root: Path) -> Iterator[bool]:
    """Whether it is still to be made; another test run waits meanwhile, and one that fails leaves nothing."""
    done = root / ".complete"
    with locked(CACHE / f"{root.name}.lock"):
        missing = not done.exists()
        if missing:
            shutil.rmtree(root, ignore_errors=True)
        yield missing
        if missing:
            done.touch()
