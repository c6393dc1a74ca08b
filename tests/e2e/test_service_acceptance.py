"""A draft that is not worth it, through the real stack: it is switched off, says so, and a good one comes back."""

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.confused import confuse, straighten
from tests.e2e.processes import eventually
from tests.e2e.router_process import router

TEXT = "/v1/completions"
PROMPT = "class Stack:\n    def push(self, item):\n"
WINDOW_TOKENS = 32


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    return confuse(tmp_path_factory.mktemp("parts") / "draft")


@pytest.fixture(scope="module")
def running(draft, tmp_path_factory):
    pair = {"target": "embedded:target", "draft": str(draft)}
    config = {
        "models": [{"name": "pair", **pair, "preload": True}],
        "speculation": {
            "approved": [{**pair, "evidence": "a test"}],
            "min_acceptance": 0.35,
            "acceptance_window": WINDOW_TOKENS,
            "retry_after": "1h",
        },
    }
    with router(tmp_path_factory.mktemp("acceptance"), json.dumps(config)) as process:
        yield process


def ask(running, **fields):
    body = {"model": "pair", "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **fields}
    answer = running.post(TEXT, body, x_opta_lane="interactive")
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"], answer.json()["opta"]["speculative"]


def compared(said):
    """Of what the draft proposed: the text's own proposals are no fault of it."""
    drafted = said.get("proposers", {}).get("draft_model", {"accepted": 0, "rejected": 0})
    return drafted["accepted"] + drafted["rejected"]


def asked_until(running, state):
    """What the answers say until the gate is in that state, each with its own."""
    said = []
    while shown(running)["gate"]["state"] != state:
        assert len(said) < 4 * WINDOW_TOKENS, said
        said.append(ask(running)[1])
    return said


def shown(running):
    return running.get("/admin/models").json()["models"][0]["speculation"]


def scraped(running, name):
    families = text_string_to_metric_families(running.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {sample.labels.get("reason"): sample.value for sample in samples}


def test_a_bad_draft_is_switched_off_within_the_window_says_so_everywhere_and_a_good_one_comes_back(running, draft):
    plain, said = ask(running, num_draft_tokens=0)
    assert (said["active"], said["reason"]) == (False, "client_off")

    before = asked_until(running, "off")
    assert all((one["active"], one["reason"]) == (True, "approved") for one in before)
    assert sum(map(compared, before[:-1])) < WINDOW_TOKENS <= sum(map(compared, before))

    text, said = ask(running)
    assert text == plain
    assert said == {"requested": True, "active": False, "reason": "low_acceptance"}
    view = shown(running)
    assert (view["active"], view["reason"], view["gate"]["switched_off"]) == (False, "low_acceptance", 1)
    assert view["gate"]["acceptance_ratio"] < 0.35
    counts = view["counts"]
    for name in ("proposed", "accepted", "rejected", "ignored", "rounds"):
        assert counts[name] == sum(one[name] for one in before), name
    for name in ("accepted", "rejected", "ignored"):
        assert scraped(running, f"lmx_spec_draft_{name}_total") == {None: counts[name]}
    assert scraped(running, "opta_spec_low_acceptance") == {None: 1}
    assert scraped(running, "opta_spec_requests_total") == {
        "client_off": 1,
        "approved": len(before),
        **{said["reason"]: 1},
    }

    straighten(draft)
    for action in ("unload", "load"):
        running.post(f"/admin/models/pair/{action}", {})
        eventually(lambda: running.get("/admin/models").json()["models"][0]["state"] in {"absent", "resident"})
    after = asked_until(running, "on")
    assert all((one["active"], one["reason"]) == (True, "approved") for one in after)
    text, said = ask(running)
    assert (text, said["active"], said["reason"]) == (plain, True, "approved")
    assert shown(running)["active"] is True
    assert shown(running)["gate"]["acceptance_ratio"] > 0.4
