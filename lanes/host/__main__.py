"""``python -m lanes.host SOCKET``: the process that a supervisor starts. The token comes in the environment."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute

from lanes.environment import TOKEN_VARIABLE


def main() -> int:
    """Connect, serve, exit: 0 in order, 1 if the link broke its protocol, 2 if called wrongly."""
    if len(sys.argv) != 2 or TOKEN_VARIABLE not in os.environ:
        print("usage: python -m lanes.host SOCKET (started by the router)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the router's to handle
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("vllm_mlx", "huggingface_hub", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns of long prompts, which are refused anyway
    return anyio.run(_serve, sys.argv[1], os.environ.pop(TOKEN_VARIABLE))


async def _serve(path: str, token: str) -> int:
    from lanes.errors import WireError  # noqa: PLC0415
    from lanes.host.orphan import watch_link  # noqa: PLC0415
    from lanes.host.service import HostService  # noqa: PLC0415

    status = 0
    try:
        async with await anyio.connect_unix(path) as stream:
            watch_link(stream.extra(SocketAttribute.raw_socket))  # noqa: S610 - not Django's
            try:
                await HostService(stream, token).run()
            except* WireError as group:
                logging.getLogger(__name__).error("link to the router: %s", group.exceptions[0])  # noqa: TRY400
                status = 1
    finally:
        _remove(Path(path))
    return status


def _remove(socket: Path) -> None:
    """The router does this when both have shaken hands; if it was killed before, nobody else would."""
    with suppress(OSError):
        socket.unlink()
    with suppress(OSError):
        socket.parent.rmdir()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # the device thread may be in the middle of a long step; nothing is left to save
