"""The committed dashboards are the built ones, and tell their reader what an empty panel means."""

import json
import re

import pytest
import yaml

from deploy.dashboards.alerts import alerts
from deploy.dashboards.files import DEPLOY, PROVISIONING, rendered
from opta_router.telemetry import names
from opta_router.telemetry.names import METRICS
from tests.observability.queries import all_promql, of_dashboards

FILES = rendered()
DASHBOARDS = {path.rpartition("/")[2]: json.loads(text) for path, text in FILES.items() if path.endswith(".json")}


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


ALL_PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in panels(dashboard)
]


@pytest.mark.parametrize("path", FILES)
def test_the_committed_file_is_the_built_one(path):
    assert (DEPLOY / path).read_text("utf-8") == FILES[path], "run: uv run python -m deploy.dashboards"


def test_nothing_else_is_provisioned():
    committed = {str(file.relative_to(DEPLOY)) for file in (DEPLOY / PROVISIONING).rglob("*") if file.is_file()}
    assert committed == {path for path in FILES if path.startswith(PROVISIONING)}


def test_building_twice_gives_the_same():
    assert rendered() == FILES


@pytest.mark.parametrize("panel", ALL_PANELS)
def test_a_panel_says_what_it_shows_and_what_it_means_that_there_is_nothing(panel):
    why_empty = panel["fieldConfig"]["defaults"]["noValue"]
    assert len(why_empty.split()) > 3
    assert "no data" not in why_empty.lower()
    assert panel["description"]
    assert panel["targets"]


@pytest.mark.parametrize("panel", ALL_PANELS)
def test_no_panel_divides_by_what_may_be_nothing(panel):
    """A ratio of nothing is NaN, so that every divisor is one of those samples that are above 0, or that always are."""
    for target in panel["targets"]:
        for divisor in re.findall(r"/ (?:on \(\) group_left \(\) )?(.*)", target.get("expr", "")):
            assert divisor.endswith("> 0)") or divisor == "sum(opta_lane_weight)"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_its_variables_and_uses_only_those(name):
    dashboard = DASHBOARDS[name]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"datasource", "lane", "model"} <= variables
    texts = json.dumps([panels(dashboard), dashboard["annotations"]])
    used = set(re.findall(r"\$\{?([a-z]\w*)", texts))
    assert used <= variables


def test_every_metric_is_looked_at_and_nothing_else_is_asked_for():
    suffixes = {"histogram": ("_bucket", "_count")}
    ours = {metric.prometheus_name + suffix for metric in METRICS for suffix in suffixes.get(metric.kind, ("",))}
    asked = {metric for query in all_promql() for metric in query.metrics}
    assert asked == ours


def test_every_attribute_that_is_asked_for_is_one_of_ours():
    ours = {name for name in vars(names).values() if isinstance(name, str)}
    asked = {name for query in of_dashboards("tempo") for name in re.findall(r"span\.([\w.]+)", query.text)}
    assert asked
    assert asked <= ours


def test_dashboards_have_fixed_uids_and_link_to_each_other():
    uids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert sorted(uids) == ["opta-hosts", "opta-lanes", "opta-speculation", "opta-traces"]
    for dashboard in DASHBOARDS.values():
        (link,) = dashboard["links"]
        assert link["tags"] == dashboard["tags"]
        assert link["keepTime"]


def test_no_two_panels_lie_on_one_another():
    for dashboard in DASHBOARDS.values():
        taken = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            assert at["x"] + at["w"] <= 24
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken, panel["title"]
            taken |= cells


@pytest.mark.parametrize("path", [f"{PROVISIONING}/datasources/opta.yaml", "compose/datasources.yaml"])
def test_metrics_lead_to_traces_and_traces_to_metrics(path):
    metrics, traces = yaml.safe_load(FILES[path])["datasources"]
    assert [metrics["uid"], traces["uid"]] == ["opta-prometheus", "opta-tempo"]
    (exemplar,) = metrics["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplar == {"name": "trace_id", "datasourceUid": traces["uid"]}
    back = traces["jsonData"]["tracesToMetrics"]
    assert back["datasourceUid"] == metrics["uid"]
    assert {tag["key"] for tag in back["tags"]} == {"opta.lane"}


def test_alerts_have_uids_of_their_own_and_say_what_to_do():
    all_alerts = alerts()
    assert len({alert.uid for alert in all_alerts}) == len({alert.name for alert in all_alerts}) == len(all_alerts)
    # Grafana takes 40 characters at most.
    assert all(len(alert.uid) <= 40 and alert.what_to_do for alert in all_alerts)
    names = " ".join(alert.name for alert in all_alerts)
    assert all(word in names for word in ("QueueWait", "LowAcceptance", "HostRestarted", "Shedding"))
