"""TraceQL that several panels share.

Tempo compares by type: a float attribute with ``0.35``, never ``0``; an int with ``0``. It takes quantiles of durations
and ints alone, and divides no two metric queries.
"""

from __future__ import annotations

from typing import Final

REQUEST: Final = (
    'span.gen_ai.provider.name = "opta_router"',
    'span.opta.lane =~ "$lane"',
    'span.gen_ai.response.model =~ "$model"',
)
"""Conditions of the span of one inference request, which has all of its ``gen_ai.*`` and ``opta.*`` attributes."""

COLUMNS: Final = (
    "span.gen_ai.request.id",
    "span.gen_ai.response.model",
    "span.opta.lane",
    "span.opta.lane.reason",
    "span.opta.queue_ms",
    "span.opta.ttft_ms",
    "span.gen_ai.usage.output_tokens",
)
"""What a table says of each request."""


def requests(*conditions: str) -> str:
    """The requests of the chosen lanes and models for which all conditions hold."""
    return spans(*REQUEST, *conditions)


def spans(*conditions: str) -> str:
    """The spans for which all conditions hold."""
    return f"{{ {' && '.join(conditions)} }}"


def table(*conditions: str, also: tuple[str, ...] = ()) -> str:
    """Requests with :data:`COLUMNS`, and ``also``, beside each."""
    return f"{requests(*conditions)} | select({', '.join((*COLUMNS, *also))})"
