"""``opta-router top``: the live page in a terminal, fed by the same event stream."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Final

import httpx
import msgspec
from rich.console import Console
from rich.live import Live

from opta_router.dialects.openai.errors import ErrorBody
from opta_router.http.live_view import Snapshot
from opta_router.journal import Entry
from opta_router.top_view import rendered, unreachable
from opta_router.watching import Watch

KEY_VARIABLE: Final = "OPTA_ADMIN_KEY"
"""Where the admin key may stand instead of on the command line, which other users of the machine can read."""

SILENCE_S: Final = 10.0
RETRY_S: Final = 1.0
ONE_LOOK_S: Final = 2.5
"""A rate is the difference of two snapshots, and the engine tells of its device time once a second."""

PIPED_WIDTH: Final = 140


class TopError(Exception):
    """The router cannot be watched, and trying again will not help."""


def run(url: str, admin_key: str | None, *, once: bool, console: Console | None = None) -> None:
    """Show the router until Ctrl-C; once, if asked, or if the output is no terminal.

    Raises:
        TopError: the router refuses, or, for a single look, does not answer.
    """
    console = console if console is not None else Console()
    key = admin_key or os.environ.get(KEY_VARIABLE)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # The router is spoken to as it is: no proxy of the environment's.
    with httpx.Client(base_url=url, headers=headers, timeout=SILENCE_S, trust_env=False) as client:
        if once or not console.is_terminal:
            if not console.is_terminal:
                console.width = PIPED_WIDTH
            console.print(rendered(_one_look(client), url, rows=15))
            return
        _keep_looking(client, url, console)


def _one_look(client: httpx.Client) -> Watch:
    watch = Watch()
    begun_s = None
    try:
        for event in _events(client):
            watch.take(event)
            if isinstance(event, Snapshot):
                begun_s = event.at_s if begun_s is None else begun_s
                if event.at_s - begun_s >= ONE_LOOK_S:
                    break
    except httpx.TransportError as exc:
        raise TopError(f"{client.base_url}: {exc}") from exc
    if watch.now is None:
        raise TopError(f"{client.base_url}: the router has stopped")
    return watch


def _keep_looking(client: httpx.Client, url: str, console: Console) -> None:
    watch = Watch()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                for event in _events(client):
                    watch.take(event)
                    if isinstance(event, Snapshot):
                        live.update(rendered(watch, url, rows=_rows(console, watch)), refresh=True)
                why = "the router has stopped"
            except httpx.TransportError as exc:
                why = str(exc)
            live.update(unreachable(url, why), refresh=True)
            time.sleep(RETRY_S)


def _rows(console: Console, watch: Watch) -> int:
    """How many of the last requests have room below all the rest."""
    models = len(watch.now.models.models) if watch.now is not None else 0
    return max(console.height - 17 - models, 1)


def _events(client: httpx.Client) -> Iterator[Snapshot | Entry]:
    with client.stream("GET", "/live/events") as response:
        if response.status_code != httpx.codes.OK:
            raise TopError(_refusal(response.status_code, response.read()))
        yield from parsed(response.iter_lines())


def _refusal(status: int, body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=ErrorBody).error.message
    except msgspec.DecodeError:
        return f"status {status}: whatever answers there is no router"


def parsed(lines: Iterable[str]) -> Iterator[Snapshot | Entry]:
    """What the lines of an event stream say."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: ") and name in _DECODERS:
            yield _DECODERS[name].decode(line.removeprefix("data: "))


_DECODERS: Final[dict[str, msgspec.json.Decoder[Snapshot] | msgspec.json.Decoder[Entry]]] = {
    "snapshot": msgspec.json.Decoder(Snapshot),
    "ended": msgspec.json.Decoder(Entry),
}
