"""The configuration in force: one owner, who changes it as a whole or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio import to_thread

from opta_router.errors import NoConfigFile
from policies.errors import ConfigError
from policies.load import Loaded, load_with_source, with_overrides
from policies.reload import Reload, reload, with_lane_settings
from policies.schema import Config, LaneName

log = logging.getLogger(__name__)


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a configuration comes from, so that it can be read again: a file, and what the command line says over it.

    No ``file``: the shipped configuration. The others are those of :func:`policies.load.with_overrides`.
    """

    file: Path | None = None
    target: str | None = None
    draft: str | None = None
    host: str | None = None
    port: int | None = None

    def load(self) -> Loaded:
        """Read it. Blocks. Raises ConfigError."""
        loaded = load_with_source(self.file)
        config = with_overrides(loaded.config, target=self.target, draft=self.draft, host=self.host, port=self.port)
        return msgspec.structs.replace(loaded, config=config)


class FileState(msgspec.Struct, frozen=True):
    """What tells one state of a file from another."""

    mtime_ns: int
    size_bytes: int
    inode: int


class Refusal(msgspec.Struct, frozen=True):
    """A reload that changed nothing, and why. ``at_s`` is in seconds of the Unix epoch."""

    at_s: float
    error: ConfigError


class Configuration:
    """The configuration in force. Whoever needs more than one value of it takes :attr:`in_force` once.

    ``applied`` and ``refused`` count reloads.

    The constructor reads it, and blocks; everything else is for one event loop.

    Args:
        origin: what to read, at the start and again.
        now_s: seconds of the Unix epoch.

    Raises:
        ConfigError: it cannot be used.
    """

    def __init__(self, origin: Origin, now_s: Callable[[], float] = time.time) -> None:
        self._origin = origin
        self._now_s = now_s
        self._listeners: list[Callable[[Config], None]] = []
        self._reading = anyio.Lock()
        self.handled_state = self.file_state()
        loaded = origin.load()
        self._in_force = loaded.config
        self.loaded_at_s = now_s()
        self.last_refusal: Refusal | None = None
        self.applied = 0
        self.refused = 0

    @property
    def in_force(self) -> Config:
        """Never changes itself: a reload puts another one in its place."""
        return self._in_force

    @property
    def file(self) -> Path | None:
        """The file it was read from; None for the shipped one."""
        return self._origin.file

    def file_state(self) -> FileState | None:
        """The file as it is on the disk now; None if there is none. Blocks."""
        if self.file is None:
            return None
        try:
            stat = self.file.stat()
        except OSError:
            return None
        return FileState(stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def on_change(self, listener: Callable[[Config], None]) -> None:
        """Have ``listener`` called with every new configuration. It must not wait, and not fail."""
        self._listeners.append(listener)

    async def reload(self) -> Reload:
        """Read the file again and put it in force.

        Raises:
            ConfigError: the file cannot be used, and nothing has changed; it is logged and kept for the status.
            NoConfigFile: there is no file.
        """
        if self.file is None:
            raise NoConfigFile("the router was started without --config; there is no file to read again")
        async with self._reading:  # two at once could end in the wrong order
            # Before the file: what is written to it meanwhile is another state.
            self.handled_state = await to_thread.run_sync(self.file_state, abandon_on_cancel=True)
            try:
                loaded = await to_thread.run_sync(self._origin.load, abandon_on_cancel=True)
                result = reload(self._in_force, loaded.config, loaded.source)
            except ConfigError as exc:
                self.last_refusal = Refusal(self._now_s(), exc)
                self.refused += 1
                log.error("not reloaded, the old configuration stays: %s", exc)  # noqa: TRY400 - the operator's mistake
                raise
            self.loaded_at_s = self._now_s()
            self.last_refusal = None
            self.applied += 1
            self._take(result)
        log.info("reloaded: %s", ", ".join(result.changed) or "nothing changes")
        if result.needs_restart:
            log.warning("changed, and waiting for a restart: %s", ", ".join(result.needs_restart))
        return result

    def set_lane(self, lane: LaneName, settings: Mapping[str, Any]) -> Reload:
        """Give a lane other settings until the next reload; see :func:`policies.reload.with_lane_settings`.

        Raises:
            ConfigError: they cannot be used, and nothing has changed.
        """
        result = with_lane_settings(self._in_force, lane, settings)
        self._take(result)
        return result

    def _take(self, result: Reload) -> None:
        self._in_force = result.config
        for listener in self._listeners:
            listener(result.config)
