"""How ``opta-router top`` looks. Pure: what was watched comes in, what rich can print goes out."""

from __future__ import annotations

import datetime
from itertools import islice
from typing import Final, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lanes.pairs import Progress
from lanes.residency import written_bytes
from lanes.wire import Lane
from opta_router.http.live_view import DraftView, FlightView, Snapshot
from opta_router.journal import Entry
from opta_router.watching import Watch

LANES: Final[tuple[Lane, ...]] = get_args(Lane)
STYLES: Final = {"interactive": "dark_orange", "throughput": "steel_blue1", "auto": "default"}
BAR_CELLS: Final = 60
MAX_FLIGHTS: Final = 6


def rendered(watch: Watch, url: str, rows: int) -> RenderableType:
    """Everything, with ``rows`` of the last requests. ``watch`` has a snapshot."""
    now = watch.now
    if now is None:
        return unreachable(url, "nothing was heard of it yet")
    flights = islice(sorted(now.in_flight, key=lambda flight: flight.stage in ("queued", "loading")), MAX_FLIGHTS)
    parts: list[RenderableType] = [
        _title(now, url),
        Text(),
        _lanes(watch, now),
        _device(watch, now),
        Text(),
        _models(now),
    ]
    if now.in_flight:
        parts.append(_flights(list(flights)))
        rows = max(rows - min(len(now.in_flight), MAX_FLIGHTS) - 3, 1)
    parts.append(_requests(list(islice(reversed(watch.ended), rows))))
    return Group(*parts)


def unreachable(url: str, why: str) -> RenderableType:
    """The router cannot be seen."""
    return Text.assemble(("opta_router", "bold"), f"  {url}  ", (f"not connected: {why}", "red"))


def _title(now: Snapshot, url: str) -> Text:
    engine = now.engine
    running = sum(lane.active for lane in now.lanes.values())
    waiting = sum(lane.queued for lane in now.lanes.values())
    if engine.state != "ready":
        why = f": {engine.last_failure}" if engine.restarts and engine.last_failure else ""
        said = (f"the engine is {'being restarted' if engine.restarts else 'starting'}{why}", "red")
    elif engine.draining:
        said = (f"draining, {running} running", "yellow")
    else:
        said = (f"ready, {running} running, {waiting} waiting", "green")
    return Text.assemble(("opta_router", "bold"), f" {now.version}  {url}  ", said)


def _lanes(watch: Watch, now: Snapshot) -> Table:
    table = _table("lane", "weight", "running", "waiting", "tokens/s", "first token", "rejected", "device s")
    for lane in LANES:
        view = now.lanes[lane]
        table.add_row(
            Text(lane, STYLES[lane]),
            f"{view.weight:g}",
            f"{view.active} of {view.max_active}",
            f"{view.queued}",
            _rate(watch.tokens_per_s(lane)),
            _ms(watch.first_token_ms(lane)),
            f"{sum(view.rejected.values())}",
            f"{view.device_s:.0f}",
        )
    return table


def _device(watch: Watch, now: Snapshot) -> Text:
    """Whose the device's time was; the mark stands where the weights would have the border."""
    weights = {lane: now.lanes[lane].weight for lane in LANES}
    target = weights["interactive"] / sum(weights.values())
    shares = watch.device_shares()
    cells = [("·", "dim")] * BAR_CELLS
    words = "idle" if not any(lane.active for lane in now.lanes.values()) else "not known yet"
    if shares is not None:
        border = round(shares["interactive"] * BAR_CELLS)
        cells = [("█", STYLES["interactive" if cell < border else "throughput"]) for cell in range(BAR_CELLS)]
        words = f"{shares['interactive']:.0%} : {shares['throughput']:.0%}"
    cells[min(round(target * BAR_CELLS), BAR_CELLS - 1)] = ("│", "bold")
    return Text.assemble(" device  ", *cells, f"  {words}, by weight {target:.0%} : {1 - target:.0%}")


def _models(now: Snapshot) -> Table:
    table = _table("model", "state", "memory", "speculation", "accepted", "per round")
    for model in now.models.models:
        drafts = now.drafts.get(model.name)
        table.add_row(
            model.name,
            f"{model.state}{_progress(model.progress)}",
            written_bytes(model.reserved_bytes),
            model.speculation.reason or "not decided yet",
            _accepted(drafts),
            f"{drafts.accepted / drafts.rounds:.1f}" if drafts is not None and drafts.rounds else "–",
        )
    return table


def _progress(progress: Progress | None) -> str:
    if progress is None or not progress.total_bytes:
        return ""
    return f", {progress.stage} {progress.done_bytes / progress.total_bytes:.0%}"


def _accepted(drafts: DraftView | None) -> str:
    compared = drafts.accepted + drafts.rejected if drafts is not None else 0
    return f"{drafts.accepted / compared:.0%} of {compared}" if drafts is not None and compared else "–"


def _flights(flights: list[FlightView]) -> Table:
    table = _table("in flight", "lane", "rule", "client", "is at", "since", "tokens", "drafted")
    for flight in flights:
        table.add_row(
            flight.request_id[:16],
            Text(flight.lane, STYLES[flight.lane]),
            flight.route,
            _client(flight),
            flight.stage.replace("_", " "),
            _ms(flight.age_ms),
            f"{flight.tokens}",
            f"{flight.accepted / flight.tokens:.0%}" if flight.accepted and flight.tokens else "–",
        )
    return table


def _requests(entries: list[Entry]) -> Table:
    table = _table("ended", "lane", "rule", "client", "queue", "first token", "tokens", "accepted", "end")
    for entry in entries:
        opta = entry.opta
        ratio = opta.speculative.acceptance_ratio if opta is not None else None
        table.add_row(
            datetime.datetime.fromtimestamp(entry.arrived_s).strftime("%H:%M:%S"),
            Text(entry.lane, STYLES[entry.lane]),
            entry.route,
            _client(entry),
            _ms(opta.queue_ms if opta is not None else None),
            _ms(opta.ttft_ms if opta is not None else None),
            "–" if entry.completion_tokens is None else f"{entry.completion_tokens}",
            f"{ratio:.0%}" if ratio is not None else "–",
            Text(entry.code, "red") if entry.code else entry.finish_reason or entry.outcome or "",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 2, 0, 1))
    table.add_column(first, no_wrap=True)
    for name in others:
        numeric = name in ("weight", "tokens/s", "first token", "waiting", "rejected", "device s", "queue", "tokens")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    return table


def _client(request: FlightView | Entry) -> str:
    return " / ".join(name for name in (request.client, request.sub_client) if name) or "–"


def _rate(per_s: float | None) -> str:
    return "–" if per_s is None else f"{per_s:.1f}"


def _ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "–"
    return f"{milliseconds:,.0f} ms" if milliseconds < 10_000 else f"{milliseconds / 1000:,.1f} s"
