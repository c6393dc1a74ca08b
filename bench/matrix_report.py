"""A result of ``bench matrix`` for people: tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.matrix_figures import Cell, Comparison, LaneComparison, Place
from bench.reporting import markdown

CELL_COLUMNS = (
    *("model", "prompts", "lane", "at once", "speculation", "reason", "tokens/s", "TTFT", "p95"),
    *("acceptance", "per round", "accepted", "rejected", "ignored"),
)


def markdown_report(
    where: str,
    cells: Sequence[Cell],
    comparisons: Sequence[Comparison],
    lanes: Sequence[LaneComparison],
) -> str:
    """Three tables: speculation on against off, the lanes beside a background, and every cell."""
    parts = [
        where,
        "Speculation on against off; above 1 is better.",
        markdown(
            ("model", "prompts", "lane", "at once", "tokens/s", "TTFT", "same text"),
            [_compared(one) for one in comparisons],
        ),
    ]
    if lanes:
        parts += [
            "Time to first token beside background streams, in either lane.",
            markdown(
                ("model", "prompts", "streams", "throughput lane", "interactive lane", "improvement"),
                [_lanes(one) for one in lanes],
            ),
        ]
    parts += ["Every cell.", markdown(CELL_COLUMNS, [_cell(cell) for cell in cells])]
    return "\n\n".join(parts) + "\n"


def _where(place: Place) -> tuple[str, ...]:
    at_once = f"{place.concurrency} beside {place.background}" if place.background else str(place.concurrency)
    return place.model, place.prompts, place.lane, at_once


def _compared(one: Comparison) -> tuple[str, ...]:
    same = f"{one.identical} of {one.answers}"
    return *_where(one.place), f"{one.speedup:.2f}", f"{one.ttft_ratio:.2f}", same


def _lanes(one: LaneComparison) -> tuple[str, ...]:
    times = f"{one.throughput_ttft_ms:,.0f} ms", f"{one.interactive_ttft_ms:,.0f} ms"
    return one.model, one.prompts, str(one.background), *times, f"{one.ttft_improvement:.2f}"


def _cell(cell: Cell) -> tuple[str, ...]:
    spec = cell.speculative
    return (
        *_where(cell.place),
        "active" if spec.active else f"{cell.way}, not active",
        ", ".join(spec.reasons),
        f"{cell.tokens_per_s:,.1f}",
        f"{cell.ttft_ms:,.0f} ms",
        f"{cell.ttft_p95_ms:,.0f} ms",
        _known(spec.acceptance_ratio),
        _known(spec.mean_accepted_tokens),
        *(str(count) if spec.active else "-" for count in (spec.accepted, spec.rejected, spec.ignored)),
    )


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def picture(comparisons: Sequence[Comparison], file: Path) -> Path | None:
    """Draw the speedups of each lane and concurrency over the prompt classes; None without the ``bench`` extra."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    classes = list(dict.fromkeys(one.place.prompts for one in comparisons))
    groups = list(dict.fromkeys((one.place.model, one.place.lane, one.place.concurrency) for one in comparisons))
    speedups = {(one.place.model, one.place.lane, one.place.concurrency, one.place.prompts): one for one in comparisons}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(groups), 1)
    for number, group in enumerate(groups):
        found = [(at, speedups[*group, name].speedup) for at, name in enumerate(classes) if (*group, name) in speedups]
        places = [at + (number - (len(groups) - 1) / 2) * width for at, _ in found]
        model, lane, at_once = group
        bars = axes.bar(places, [value for _, value in found], width, label=f"{model}, {lane}, {at_once} at once")
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_ylabel("tokens/s, speculation on : off")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file
