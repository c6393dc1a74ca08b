"""Every query of the committed dashboards, data sources and alerts, as an operator's Grafana would send it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.observability.fetched import ROOT

DEPLOY = ROOT / "deploy"
PROVISIONING = DEPLOY / "grafana" / "provisioning"
DASHBOARDS = sorted((PROVISIONING / "dashboards" / "opta").glob("*.json"))
METRIC = re.compile(r"\b(?:opta|gen_ai|lmx)_\w+")
NOT_METRICS = re.compile(r"\{[^}]*\}|\b(?:by|on|ignoring|group_left)\s*\([^)]*\)")


@dataclass(frozen=True)
class Query:
    """A query and where it stands. `labels` are those that its legend shows."""

    where: str
    text: str
    labels: frozenset[str] = frozenset()

    def filled(self, values: Mapping[str, str]) -> str:
        """With the variables' values, as Grafana puts them in."""
        filled = re.sub(r"\$\{?(\w+)\}?", lambda found: values[found[1]], self.text)
        assert "$" not in filled
        return filled

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics in a PromQL query."""
        return set(METRIC.findall(NOT_METRICS.sub("", self.text)))


def dashboards() -> dict[str, dict[str, Any]]:
    """The committed dashboards, by file name."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in DASHBOARDS}


def panels(dashboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels that show something."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def of_dashboards(plugin: str) -> list[Query]:
    """The queries of all panels that go to data sources of one kind."""
    found = []
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                if target["datasource"]["type"] == plugin:
                    legend = frozenset(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
                    text = target["expr" if plugin == "prometheus" else "query"]
                    found.append(Query(f"{name}/{panel['title']}/{target['refId']}", text, legend))
    return found


def annotations() -> list[Query]:
    """The queries of the marks across graphs, each once."""
    texts = {mark["expr"] for dashboard in dashboards().values() for mark in dashboard["annotations"]["list"]}
    return [Query("annotation", text) for text in sorted(texts)]


def exemplar_labels() -> set[str]:
    """The labels of exemplars that lead to a trace."""
    document = yaml.safe_load((PROVISIONING / "datasources" / "opta.yaml").read_text("utf-8"))
    (metrics,) = (source for source in document["datasources"] if source["type"] == "prometheus")
    return {destination["name"] for destination in metrics["jsonData"]["exemplarTraceIdDestinations"]}


def of_traces_to_metrics() -> list[Query]:
    """The queries beside a span, with the labels of a span of the interactive lane."""
    document = yaml.safe_load((PROVISIONING / "datasources" / "opta.yaml").read_text("utf-8"))
    (traces,) = (source for source in document["datasources"] if source["type"] == "tempo")
    settings = traces["jsonData"]["tracesToMetrics"]
    tags = ", ".join(f'{tag["value"]}="interactive"' for tag in settings["tags"])
    return [Query(query["name"], query["query"].replace("$__tags", tags)) for query in settings["queries"]]


def prometheus_alerts() -> list[dict[str, Any]]:
    """The rules of the file for Prometheus."""
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text("utf-8"))["groups"]
    return list(group["rules"])


def grafana_alerts() -> list[dict[str, Any]]:
    """The rules that Grafana is provisioned with."""
    (group,) = yaml.safe_load((PROVISIONING / "alerting" / "opta.yaml").read_text("utf-8"))["groups"]
    return list(group["rules"])


def of_alerts() -> list[Query]:
    """The figures that the alerts look at."""
    return [
        Query(rule["title"], next(query["model"]["expr"] for query in rule["data"] if query["refId"] == "A"))
        for rule in grafana_alerts()
    ]


def model_names() -> list[str]:
    """Matchers whose series give the variable `model` its values."""
    texts = {
        variable["query"]
        for dashboard in dashboards().values()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }
    return [re.fullmatch(r"label_values\((.*), model\)", text)[1] for text in sorted(texts)]  # type: ignore[index]


def all_promql() -> Iterator[Query]:
    """Everything that is asked of Prometheus."""
    yield from of_dashboards("prometheus")
    yield from annotations()
    yield from of_traces_to_metrics()
    yield from of_alerts()
