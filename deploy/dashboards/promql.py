"""PromQL that several panels share. An expression here has no sample where there is nothing to say: never NaN."""

from __future__ import annotations

from typing import Final

WINDOW: Final = "$__rate_interval"
LANE: Final = 'lane=~"$lane"'
LANE_AND_MODEL: Final = 'lane=~"$lane", model=~"$model"'
MODEL: Final = 'model=~"$model"'
GEN_AI: Final = 'opta_lane=~"$lane", gen_ai_request_model=~"$model"'
"""The labels of the ``gen_ai_*`` histograms."""


def per_second(metric: str, labels: str, by: str, window: str = WINDOW) -> str:
    """Growth a second of a counter, summed but for the labels ``by``."""
    return f"sum by ({by}) (rate({_of(metric, labels)}[{window}]))"


def growth(metric: str, labels: str = "", by: str = "", window: str = "$__range") -> str:
    """What a counter grew by in the window; for all together, 0 where the counter does not exist yet."""
    grown = f"increase({_of(metric, labels)}[{window}])"
    return f"sum by ({by}) ({grown})" if by else f"sum({grown}) or vector(0)"


def quantile(q: float, histogram: str, labels: str, by: str, window: str = WINDOW) -> str:
    """A quantile of a histogram, where it counted anything in the window. Otherwise it would be NaN."""
    buckets = per_second(f"{histogram}_bucket", labels, f"le, {by}", window)
    counted = per_second(f"{histogram}_count", labels, by, window)
    return f"histogram_quantile({q:g}, {buckets}) and on ({by}) ({counted} > 0)"


def share(part: str, whole: str) -> str:
    """A part of a whole, where there is a whole."""
    return f"({part}) / (({whole}) > 0)"


def spectrum(histogram: str, labels: str, window: str = WINDOW) -> str:
    """How many observations each bucket of a histogram took, for a heatmap."""
    return f"sum by (le) (increase({histogram}_bucket{{{labels}}}[{window}]))"


def _of(metric: str, labels: str) -> str:
    return f"{metric}{{{labels}}}" if labels else metric
