"""A result of ``bench matrix`` for people: tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.matrix_figures import Cell, Comparison, LaneComparison, Place
from bench.reporting import markdown

CELL_COLUMNS = (
    *("model", "prompts", "lane", "at once", "speculation", "reason", "tokens/s", "TTFT", "p95"),
    *("acceptance", "per round", "accepted", "rejected", "ignored"),
)

COLOURS = ("#1f77b4", "#aec7e8", "#ff7f0e", "#ffbb78", "#2ca02c", "#98df8a", "#9467bd", "#c5b0d5")


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
        import pygal  # noqa: PLC0415 - an extra
        from pygal.style import Style  # noqa: PLC0415
    except ImportError:
        return None
    classes = list(dict.fromkeys(one.place.prompts for one in comparisons))
    chart: Any = pygal.Bar(
        js=[],  # it would be fetched from another host
        style=Style(background="white", plot_background="white", opacity=0.9, colors=COLOURS),
        title="tokens/s with speculation, as a multiple of those without",
        legend_at_bottom=True,
        print_values=True,
        value_formatter=lambda value: "" if value is None else f"{value:.2f}",
        include_x_axis=True,
        width=900,
        height=480,
    )
    chart.x_labels = classes
    for model, lane, at_once in dict.fromkeys(
        (one.place.model, one.place.lane, one.place.concurrency) for one in comparisons
    ):
        found = {
            one.place.prompts: one.speedup
            for one in comparisons
            if (one.place.model, one.place.lane, one.place.concurrency) == (model, lane, at_once)
        }
        chart.add(f"{model}, {lane}, {at_once} at once", [found.get(name) for name in classes])
    tree = chart.render_tree()
    for parent in list(tree.iter()):
        for script in parent.findall("script"):  # for tool tips, which a picture in a document has not
            parent.remove(script)
    file.write_bytes(ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True))
    return file
