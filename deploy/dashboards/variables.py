"""Template variables: which data sources, which lanes, which models."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard as models

METRICS: Final = models.DataSourceRef("prometheus", "${datasource}")
TRACES: Final = models.DataSourceRef("tempo", "${traces}")

EVERYTHING: Final = ".*"
"""What a variable stands for when all its values are chosen. Conditions on variables are regular expressions."""

METRICS_UID: Final = "opta-prometheus"
TRACES_UID: Final = "opta-tempo"

_ALL: Final = models.VariableOption(selected=True, text="All", value="$__all")
_LANES: Final = ("interactive", "throughput")


def metrics() -> builders.DatasourceVariable:
    """Where metrics are: a Prometheus, or what speaks its language."""
    return _source("datasource", "Metrics", "prometheus", METRICS_UID)


def traces() -> builders.DatasourceVariable:
    """Where traces are: a Tempo."""
    return _source("traces", "Traces", "tempo", TRACES_UID)


def lane() -> builders.CustomVariable:
    """The lanes. There are two, so that nothing need be asked, and an idle service has them, too."""
    options = [models.VariableOption(selected=False, text=name, value=name) for name in _LANES]
    return (
        builders.CustomVariable("lane")
        .label("Lane")
        .values(",".join(_LANES))
        .options([_ALL, *options])
        .current(_ALL)
        .multi(True)
        .include_all(True)
        .all_value(EVERYTHING)
    )


def model() -> builders.QueryVariable:
    """The models that have a metric."""
    return (
        builders.QueryVariable("model")
        .label("Model")
        .datasource(METRICS)
        .query('label_values({__name__=~"opta_model_memory_bytes|opta_router_requests_total"}, model)')
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .current(_ALL)
        .multi(True)
        .include_all(True)
        .all_value(EVERYTHING)
    )


def slower_than() -> builders.CustomVariable:
    """From where on a request is slow."""
    durations = ("100ms", "500ms", "1s", "5s", "30s")
    options = [models.VariableOption(selected=name == "500ms", text=name, value=name) for name in durations]
    return (
        builders.CustomVariable("slower_than")
        .label("Slower than")
        .values(",".join(durations))
        .options(options)
        .current(options[1])
    )


def _source(name: str, label: str, plugin: str, uid: str) -> builders.DatasourceVariable:
    ours = models.VariableOption(selected=True, text=uid, value=uid)
    return builders.DatasourceVariable(name).label(label).type(plugin).current(ours)
