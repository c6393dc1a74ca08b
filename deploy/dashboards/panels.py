"""Panels. Each must say what it means that there is nothing to show: ``why_empty`` stands where the data would be."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Final, TypeAlias

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, tempo, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models
from grafana_foundation_sdk.models import tempo as tempo_models

from deploy.dashboards.variables import METRICS, TRACES

Query: TypeAlias = prometheus.Dataquery | tempo.TempoQuery
Step: TypeAlias = tuple[float | None, str]
"""A threshold: from which value on, which colour. The first has no value."""

HEIGHT: Final = 8
FULL, HALF, THIRD, QUARTER, SIXTH = 24, 12, 8, 6, 4

NOT_REPORTING: Final = "No metrics of a router here: does it run, and does it send or is it scraped?"
NO_REQUEST: Final = "No request in this time, so nothing to measure"
NO_TRACE: Final = "No such request in this time. Traces are sent where telemetry.otlp_endpoint says"


def promql(expression: str, legend: str = "", *, now: bool = False, exemplars: bool = False) -> prometheus.Dataquery:
    """A query over the panel's time, or, with ``now``, of its end."""
    query = prometheus.Dataquery().datasource(METRICS).expr(expression).legend_format(legend or "__auto")
    query = query.editor_mode(prometheus_models.QueryEditorMode.CODE).exemplar(exemplars)
    return query.instant() if now else query.range()


def traceql(query: str) -> tempo.TempoQuery:
    """A search, or a metrics query, in TraceQL."""
    built = tempo.TempoQuery().datasource(TRACES).query_type(tempo_models.TempoQueryType.TRACEQL).query(query)
    return built.limit(50).table_type(tempo_models.SearchTableType.SPANS).filters([])


def graph(
    title: str,
    description: str,
    why_empty: str,
    *queries: Query,
    unit: str = "short",
    span: int = HALF,
    stacked: bool = False,
    most: float | None = None,
) -> timeseries.Panel:
    """Lines over time; ``stacked`` if they add up to something. ``most`` is the axis' end."""
    panel = timeseries.Panel().title(title).description(description).no_value(why_empty).unit(unit)
    panel = panel.span(span).height(HEIGHT).min(0).line_width(1).fill_opacity(25 if stacked else 8)
    panel = panel.show_points(common_models.VisibilityMode.NEVER)
    panel = panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
    )
    panel = panel.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if most is not None:
        panel = panel.max(most)
    for query in _named(queries):
        panel = panel.with_target(query)
    return panel


def number(
    title: str,
    description: str,
    why_empty: str,
    *queries: Query,
    unit: str = "short",
    span: int = SIXTH,
    steps: tuple[Step, ...] = ((None, "text"),),
) -> stat.Panel:
    """One figure for each series, the last one, coloured by ``steps``."""
    thresholds = dashboards.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    panel = stat.Panel().title(title).description(description).no_value(why_empty).unit(unit).span(span).height(5)
    panel = panel.thresholds(thresholds.steps([models.Threshold(value, color) for value, color in steps]))
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.graph_mode(common_models.BigValueGraphMode.AREA)
    for query in _named(queries):
        panel = panel.with_target(query)
    return panel


def heat(title: str, description: str, why_empty: str, expression: str, unit: str) -> heatmap.Panel:
    """A histogram over time, one panel for each chosen lane."""
    query = promql(expression, "{{le}}").format(prometheus_models.PromQueryFormat.HEATMAP).ref_id("A")
    colours = heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    panel = heatmap.Panel().title(title).description(description).no_value(why_empty).span(FULL).height(HEIGHT)
    panel = panel.color(colours).y_axis(heatmap.YAxisConfig().unit(unit)).with_target(query)
    # Buckets that took nothing are empty, not of the palest colour.
    panel = panel.filter_values(heatmap.FilterValueRange().le(1e-9))
    return panel.repeat("lane").repeat_direction("h").max_per_row(2)


def rows(title: str, description: str, why_empty: str, query: str, *, span: int = FULL) -> table.Panel:
    """Requests that a search found, the longest first; each leads to its trace."""
    panel = table.Panel().title(title).description(description).no_value(why_empty).span(span).height(HEIGHT)
    longest_first = common.TableSortByFieldState().display_name("Duration").desc(True)
    return panel.sort_by([longest_first]).with_target(traceql(query).ref_id("A"))


def row(title: str) -> dashboards.Row:
    """A heading."""
    return dashboards.Row(title)


def _named(queries: tuple[Query, ...]) -> list[Query]:
    return [query.ref_id(ascii_uppercase[position]) for position, query in enumerate(queries)]
