"""What Prometheus' own tool says of our metrics and alerts."""

import re
import subprocess

import pytest
import yaml

from tests.observability.fetched import debian
from tests.observability.queries import DEPLOY, grafana_alerts, prometheus_alerts

pytestmark = pytest.mark.observability

RULES = DEPLOY / "prometheus" / "alerts.yaml"
MINUTES = "1m"


def promtool(*arguments, stdin=None):
    command = [debian("promtool", "promtool"), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)


def test_the_exposition_is_well_formed(observed):
    checked = promtool("check", "metrics", stdin=observed.running.get("/metrics").content)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_rules_are_well_formed():
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(prometheus_alerts())} rules found" in checked.stdout.decode()


@pytest.mark.parametrize("config", ["prometheus/prometheus.yaml"])
def test_the_configuration_is_well_formed(config):
    checked = promtool("check", "config", str(DEPLOY / config))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_and_prometheus_have_the_same_alerts():
    bounds = {">": "gt", "<": "lt"}
    for ours, theirs in zip(prometheus_alerts(), grafana_alerts(), strict=True):
        figure, bound = (query["model"] for query in theirs["data"])
        evaluator = bound["conditions"][0]["evaluator"]
        expression, beyond, number = ours["expr"].rsplit(" ", 2)
        assert (ours["alert"], ours["for"], ours["labels"]) == (theirs["title"], theirs["for"], theirs["labels"])
        assert expression == f"({figure['expr']})"
        assert (bounds[beyond], float(number)) == (evaluator["type"], evaluator["params"][0])


QUIET = {
    'opta_lane_weight{lane="interactive"}': "8x60",
    'opta_lane_queue_duration_seconds_bucket{lane="interactive",le="1"}': "0+60x60",
    'opta_lane_queue_duration_seconds_bucket{lane="interactive",le="5"}': "0+60x60",
    'opta_lane_queue_duration_seconds_bucket{lane="interactive",le="+Inf"}': "0+60x60",
    'opta_lane_queue_duration_seconds_count{lane="interactive"}': "0+60x60",
    'opta_lane_rejections_total{lane="interactive",code="queue_full"}': "0x60",
    'lmx_spec_draft_accepted_total{model="m",draft_model="d"}': "0+80x60",
    'lmx_spec_draft_rejected_total{model="m",draft_model="d"}': "0+20x60",
    'opta_spec_low_acceptance{model="m",draft_model="d"}': "0x60",
    "opta_host_restarts_total": "0x60",
    "opta_telemetry_dropped_total": "0x60",
}
INTERACTIVE = {"lane": "interactive"}


@pytest.mark.parametrize(
    ("changed", "due"),
    [
        ({}, {}),
        (
            {'opta_lane_queue_duration_seconds_bucket{lane="interactive",le="1"}': "0x60"},
            {"OptaQueueWaitInteractive": INTERACTIVE},
        ),
        (
            {
                'lmx_spec_draft_accepted_total{model="m",draft_model="d"}': "0+20x60",
                'lmx_spec_draft_rejected_total{model="m",draft_model="d"}': "0+80x60",
            },
            {"OptaLowAcceptance": {"model": "m", "draft_model": "d"}},
        ),
        # The same ratio of a handful of tokens says nothing.
        (
            {
                'lmx_spec_draft_accepted_total{model="m",draft_model="d"}': "0+2x60",
                'lmx_spec_draft_rejected_total{model="m",draft_model="d"}': "0+8x60",
            },
            {},
        ),
        (
            {'opta_spec_low_acceptance{model="m",draft_model="d"}': "1x60"},
            {"OptaSpeculationOff": {"model": "m", "draft_model": "d"}},
        ),
        ({"opta_host_restarts_total": "0x50 1x10"}, {"OptaHostRestarted": {}}),
        ({"opta_host_restarts_total": "0x50 5x10"}, {"OptaHostRestarted": {}, "OptaHostCrashLoop": {}}),
        (
            {'opta_lane_rejections_total{lane="interactive",code="queue_full"}': "0+6x60"},
            {"OptaShedding": INTERACTIVE},
        ),
        ({"opta_telemetry_dropped_total": "0+1x60"}, {"OptaTelemetryLost": {}}),
        ({'opta_lane_weight{lane="interactive"}': "8x40 stale"}, {"OptaSilent": {}}),
    ],
)
def test_alerts_are_due_when_they_should_be_and_only_then(tmp_path, changed, due):
    rules = {rule["alert"]: rule for rule in prometheus_alerts()}
    series = [{"series": name, "values": values} for name, values in {**QUIET, **changed}.items()]
    checks = [
        {
            "eval_time": "59m",
            "alertname": name,
            "exp_alerts": [_expected(rule, due[name])] if name in due else [],
        }
        for name, rule in rules.items()
    ]
    case = {"interval": MINUTES, "input_series": series, "alert_rule_test": checks}
    file = tmp_path / "alerts_test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": MINUTES, "tests": [case]}))
    checked = promtool("test", "rules", str(file))
    assert checked.returncode == 0, (checked.stdout + checked.stderr).decode()


def _expected(rule, labels):
    def filled(text):
        return re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)

    annotations = {name: filled(text) for name, text in rule["annotations"].items()}
    return {"exp_labels": {**rule["labels"], **labels}, "exp_annotations": annotations}
