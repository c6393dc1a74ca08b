"""A real Chromium: the machine's own, or Debian's, unpacked into the cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

from tests.page.fetched import CACHE, debian

INSTALLED = ("chromium", "chromium-browser", "google-chrome")
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>{root}/usr/share/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{root}/fonts-cache</cachedir>
  <alias binding="same"><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="same"><family>monospace</family><prefer><family>JetBrains Mono</family></prefer></alias>
  <alias binding="same"><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
</fontconfig>
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that runs for as long as the context does."""
    with _nothing_preloaded(), sync_playwright() as playwright:
        browser = _launched(playwright)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def _nothing_preloaded() -> Iterator[None]:
    """The tests run with OpenBLAS preloaded, whose room in every thread is more than node's small stacks have."""
    preloaded = os.environ.pop("LD_PRELOAD", None)
    try:
        yield
    finally:
        if preloaded is not None:
            os.environ["LD_PRELOAD"] = preloaded


def _launched(playwright: Playwright) -> Browser:
    # Within a container there is neither a sandbox to be had nor much shared memory.
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    installed = next((path for name in INSTALLED if (path := shutil.which(name))), None)
    if installed is not None:
        return playwright.chromium.launch(executable_path=installed, args=arguments)
    unpacked = debian("chromium", "chromium", "fonts-inter", "fonts-jetbrains-mono")
    environment = {**unpacked.environment(), "FONTCONFIG_FILE": str(_fonts(unpacked.root))}
    program = unpacked.root / "usr/lib/chromium/chromium"
    return playwright.chromium.launch(executable_path=program, args=arguments, env=environment)


def _fonts(root: Path) -> Path:
    """The page asks for the system's font; a bare machine has none that is fit to be looked at."""
    file = CACHE / "fonts.conf"
    file.write_text(FONTS.format(root=root), "utf-8")
    return file
