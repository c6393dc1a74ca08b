"""Repairs to Hypercorn 0.18.0, as a connection handler of our own on top of its protocols.

Nothing in Hypercorn is patched: `connection.Connection` takes the place of its `TCPServer`, `runner.serve` of its
`worker_serve`, and the rest are subclasses that only these two use. They lean on private methods, so they refuse
to run on any other version. Each repair names the upstream issue to delete it by, where there is one.

| fault of 0.18.0                                                           | repaired in    | upstream            |
|---------------------------------------------------------------------------|----------------|---------------------|
| HTTP/2 stream buffer releases its writer while still full: no bound       | `h2`           | - (anycorn #61)     |
| an HTTP/2 reader with a closed window holds its stream for ever           | `h2`           | -                   |
| body data for an HTTP/2 stream that was already answered ends in KeyError | `h2`           | -                   |
| an HTTP/2 answer that its application leaves unfinished is never ended    | `h2`           | -                   |
| a second head for an HTTP/2 stream spoils the others' header compression  | `h2`           | -                   |
| a reset or refused HTTP/2 stream leaves its connection without a timer    | `h2`           | -                   |
| HTTP/2 requests during the drain are reset as failed, not as refused      | `h2`           | -                   |
| a sender cancelled while it waits for the socket loses frames             | `connection`   | -                   |
| WebSocket data before the handshake's answer leaks the application        | `websocket`    | -                   |
| a WebSocket message over the limit is kept, and grows                     | `websocket`    | -                   |
| an invalid WebSocket handshake is answered, its connection left open      | `h11`, `h2`    | -                   |
| an answer before the whole body was read leaks connection and tasks       | `app_queue`    | - (memory: #119)    |
| closing waits for a stalled reader without a deadline                     | `connection`   | #342 (seen as #202) |
| pipelined bytes blind the detection of a disconnect                       | `h11`          | -                   |
| a keep-alive peer that has closed keeps its descriptor until the timeout  | `connection`   | -                   |
| headers have no deadline but keep-alive's                                 | `connection`   | - (near it: #235)   |
| `graceful_timeout` is ignored since Python 3.12.1                         | `runner.serve` | #308, #374          |
| a lifespan that fails while serving is only logged                        | `lifespan`     | -                   |
| head, body and end of an answer are a system call each                    | `connection`   | -                   |
| to notice a disconnect takes a task for each request                      | `app_queue`    | -                   |
| Transfer-Encoding together with Content-Length is served; h2c is upgraded | `h11`          | -                   |

"-": nothing was found in the upstream tracker; the repair can go when its test in tests/e2e passes without it.
"""

from __future__ import annotations

from importlib.metadata import version

REPAIRED_VERSION = "0.18.0"


class UnrepairedHypercornError(RuntimeError):
    """Another Hypercorn is installed than the one that the repairs were written for and tested on."""


def require_repaired_version(installed: str | None = None) -> None:
    """Refuse to serve on any other Hypercorn than 0.18.0.

    Raises:
        UnrepairedHypercornError: says which version was found and what to do.
    """
    found = version("hypercorn") if installed is None else installed
    if found != REPAIRED_VERSION:
        raise UnrepairedHypercornError(
            f"hypercorn {found} is installed, but opta_router.server repairs private parts of {REPAIRED_VERSION}: "
            f"install hypercorn=={REPAIRED_VERSION}, or review the repairs and their tests against {found}"
        )
