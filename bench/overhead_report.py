"""What ``bench overhead`` has found, as a table and held against what is promised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from bench.reporting import Bar, at_least, at_most, markdown

OURS, ECHO, LITELLM, ENGINE = "opta-router", "echo", "LiteLLM", "engine"
CONNECTIONS: Final = (1, 32, 256)
CPU_CONNECTIONS: Final = 32
STREAMS: Final = 32


class Added(msgspec.Struct, frozen=True):
    """What a way adds to another: its own quantiles less the other's."""

    to: str
    median_ms: float
    p99_ms: float


class Way(msgspec.Struct, kw_only=True):
    """One way to an answer. CPU time is that of each process that works for it, at 32 connections."""

    name: str
    median_ms: float
    p99_ms: float
    adds: Added | None = None
    requests_per_s: dict[int, float] = {}
    cpu_ms_per_request: dict[str, float] = {}
    stream_tokens_per_s: float | None = None


def bars(ways: Sequence[Way]) -> list[Bar]:
    """What the front door promises, held against one run.

    At one connection the requests/s say the same as the latency, which has a bound of its own.
    """
    found = {way.name: way for way in ways}
    ours = found[OURS]
    added_ms = ours.median_ms - found[ECHO].median_ms
    promises = [at_most("median ms added to the echo's, one connection", added_ms, 1.0)]
    for name, bound in ((ECHO, 0.5), (LITELLM, 5.0)):
        if name not in found:
            continue
        for connections, rate in ours.requests_per_s.items():
            if name == ECHO and connections == 1:
                continue
            ratio = rate / found[name].requests_per_s[connections]
            promise = f"requests/s : {name}'s, at {connections}"
            promises.append(at_least(promise, ratio, bound))
    return promises


def table(ways: Sequence[Way]) -> str:
    """Markdown."""
    columns = (
        *("way", "median", "p99", "adds"),
        *(f"requests/s at {connections}" for connections in CONNECTIONS),
        *(f"CPU ms a request at {CPU_CONNECTIONS}", f"tokens/s, {STREAMS} streams"),
    )
    rows = [
        (
            *(f"`{way.name}`", f"{way.median_ms:.2f} ms", f"{way.p99_ms:.2f} ms", _added(way.adds)),
            *(f"{way.requests_per_s[n]:,.0f}" if way.requests_per_s else "" for n in CONNECTIONS),
            ", ".join(f"{process} {spent:.2f}" for process, spent in way.cpu_ms_per_request.items()),
            f"{way.stream_tokens_per_s:,.0f}" if way.stream_tokens_per_s else "",
        )
        for way in ways
    ]
    return markdown(columns, rows)


def _added(adds: Added | None) -> str:
    return f"{adds.median_ms:.2f} ms, p99 {adds.p99_ms:.2f} ms, to `{adds.to}`" if adds is not None else ""
