"""What makes a running router read its configuration again: SIGHUP, and a change of the file."""

from __future__ import annotations

import logging
import signal
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskStatus

from opta_router.configuration import Configuration, FileState
from opta_router.errors import NoConfigFile
from policies.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0


class Settling:
    """Says when a file that changes has come to rest: a half-written one is not worth reading.

    Args:
        state: the file at the first look.
    """

    def __init__(self, state: FileState | None) -> None:
        self._state = state

    def settled(self, state: FileState | None, handled: FileState | None) -> bool:
        """Whether the file is as it was at the last look, and not in the state that was ``handled`` already."""
        rests = state == self._state
        self._state = state
        return rests and state != handled


async def watch_file(configuration: Configuration) -> None:
    """Reload when the file has changed, for as long as it runs. Without a file there is nothing to do."""
    if configuration.file is None:
        return
    settling = Settling(configuration.handled_state)
    while True:
        await anyio.sleep(LOOK_EVERY_S)
        try:
            state = await to_thread.run_sync(configuration.file_state, abandon_on_cancel=True)
        except RuntimeError:  # there is no thread to be had now; the requests that run matter more
            continue
        if settling.settled(state, configuration.handled_state):
            await _reload(configuration, "the configuration's file has changed")


async def reload_on_hangup(
    configuration: Configuration, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Reload at every SIGHUP, for as long as it runs."""
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            await _reload(configuration, "SIGHUP")


async def _reload(configuration: Configuration, why: str) -> None:
    """Whatever comes of it, the requests that run go on."""
    log.info("%s", why)
    try:
        await configuration.reload()
    except ConfigError:
        pass  # logged, and shown by the status
    except NoConfigFile as exc:
        log.warning("%s: %s", why, exc)
    except Exception:
        log.exception("%s: not reloaded", why)
