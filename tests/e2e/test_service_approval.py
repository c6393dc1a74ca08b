"""A pair that nobody has approved: tried, measured, approved by that run, and in service."""

import json
import shutil

import pytest

from bench.cli import main as bench
from lanes import embedded
from tests.e2e.processes import eventually
from tests.e2e.router_process import router

# Ratios of times are for a machine that is left alone; here the way counts, and what does not depend on time.
GATES = """
full: &bounds
  interactive: {speedup: 0, speedup_of_each_class: 0, ttft_kept: 0, ttft_improvement: 0}
  throughput: {tokens_per_s_kept: 0}
short: *bounds
acceptance: {floor: 0.35}
"""
FEW = ("--classes", "code", "--prompts", "2", "--rounds", "1", "--tokens", "24", "--interactive", "1")
AT_ONCE = ("--throughput", "2", "--background", "1")


def speculative(running):
    body = {"model": "pair", "prompt": "def add(a, b):\n", "max_tokens": 8, "temperature": 0}
    answer = running.post("/v1/completions", body, x_opta_lane="interactive")
    assert answer.status_code == 200, answer.text
    return answer.json()["opta"]["speculative"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_pair_goes_from_not_approved_over_a_trial_and_its_measurement_to_approved(tmp_path, capsys):
    draft = shutil.copytree(embedded.path("draft"), tmp_path / "draft")
    approvals, gates, result = tmp_path / "approvals.yaml", tmp_path / "gates.yaml", tmp_path / "pair.json"
    gates.write_text(GATES)
    models = [{"name": "pair", "target": "embedded:target", "draft": str(draft), "preload": True}]
    with router(tmp_path, json.dumps({"models": models})) as running:
        config = tmp_path / "opta.yaml"
        said = speculative(running)
        assert said == {"requested": True, "active": False, "reason": "not_approved"}

        assert bench(["matrix", "--config", str(config), "--try", *FEW, *AT_ONCE, "--save", str(result)]) == 0
        (cell,) = [
            cell
            for cell in json.loads(result.read_text())["cells"]
            if (cell["place"]["lane"], cell["way"], cell["place"]["background"]) == ("interactive", "on", 0)
        ]
        measured = cell["speculative"]
        assert (measured["active"], measured["telemetry"]) == (True, "native")
        assert measured["reasons"] == {"required": 2}
        assert measured["proposed"] == measured["accepted"] + measured["rejected"] + measured["ignored"] > 0

        capsys.readouterr()
        assert bench(["gate", str(result), "--gates", str(gates), "--approve", str(approvals)]) == 0
        assert f"approved in {approvals}: embedded:target with draft {draft}" in capsys.readouterr().out
        assert speculative(running)["reason"] == "not_approved", "until the configuration names the file"

        config.write_text(json.dumps({"models": models, "speculation": {"approvals_file": approvals.name}}))
        eventually(lambda: speculative(running)["reason"] == "approved")
        assert speculative(running)["active"] is True
        view = running.get("/admin/models").json()["models"][0]["speculation"]
        assert (view["active"], view["reason"]) == (True, "approved")
        assert view["approval"]["evidence"] == str(result)
        assert view["approval"]["measured"]["figures"]["acceptance ratio of the draft"] >= 0.35
