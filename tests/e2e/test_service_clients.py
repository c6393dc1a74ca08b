"""Clients with keys, their lanes and presets, over HTTP."""

import hashlib
import json

import openai
import pytest

from tests.e2e.router_process import router

AGENT_KEY, ANN_KEY = "opta-agent-0123456789abcdef", "opta-ann-0123456789abcdef"
CONFIG = f"""
models:
  - {{name: echo, target: "scripted:", preload: true}}
presets:
  - {{name: brief, model: echo, lane: interactive, sampling: {{max_tokens: 3}}}}
clients:
  - {{name: agent, key_sha256: "{hashlib.sha256(AGENT_KEY.encode()).hexdigest()}", lane: throughput}}
  - {{name: ann, key_sha256: "{hashlib.sha256(ANN_KEY.encode()).hexdigest()}"}}
"""
BODY = {"model": "echo", "prompt": "abcdef", "max_tokens": 6}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    with router(tmp_path_factory.mktemp("keyed"), CONFIG) as running:
        yield running


def ask(keyed, key=None, body=None, **headers):
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return keyed.post("/v1/completions", {**BODY, **(body or {})}, **headers)


@pytest.mark.parametrize("key", [None, "opta-of-somebody-else", hashlib.sha256(ANN_KEY.encode()).hexdigest()])
def test_without_a_known_key_nothing_but_health_is_answered(keyed, key):
    answer = ask(keyed, key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert keyed.get("/v1/models").status_code == 401
    assert keyed.get("/v1/models/echo").status_code == 401
    assert keyed.get("/healthz").status_code == keyed.get("/readyz").status_code == 200


def test_the_sdks_key_is_the_clients_and_a_wrong_one_is_an_authentication_error(keyed):
    with keyed.sdk() as client:
        assert client.with_options(api_key=ANN_KEY).completions.create(**BODY).choices[0].text == "abcdef"
        with pytest.raises(openai.AuthenticationError):
            client.completions.create(**BODY)


@pytest.mark.parametrize(
    ("key", "headers", "lane", "route"),
    [
        (AGENT_KEY, {}, "throughput", "client:agent"),
        (AGENT_KEY, {"x_opta_lane": "interactive"}, "throughput", "client:agent"),
        (ANN_KEY, {}, "interactive", "auto:room"),
        (ANN_KEY, {"x_opta_lane": "throughput"}, "throughput", "hint:x-opta-lane"),
        (ANN_KEY, {"x_opta_preset": "brief"}, "interactive", "preset:brief"),
        (ANN_KEY, {"x_claude_code_request_class": "subagent"}, "throughput", "hint:x-claude-code-request-class"),
    ],
)
def test_a_hint_asks_and_the_clients_policy_answers(keyed, key, headers, lane, route):
    answer = ask(keyed, key, **headers)
    assert (answer.headers["x-opta-lane"], answer.headers["x-opta-route"]) == (lane, route)
    refused = key == AGENT_KEY and bool(headers)
    assert ("hint_ignored" in answer.json()["opta"]) is refused


def test_a_preset_can_be_named_as_the_model_and_the_request_wins_over_it(keyed):
    text = [
        ask(keyed, ANN_KEY, body).json()["choices"][0]["text"]
        for body in ({"model": "brief", "max_tokens": None}, {"model": "brief", "max_tokens": 2})
    ]
    assert text == ["abc", "ab"]


def test_a_preset_that_is_not_configured_is_a_404(keyed):
    answer = ask(keyed, ANN_KEY, x_opta_preset="nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "preset_not_found")


def test_keys_are_in_no_log(keyed):
    ask(keyed, ANN_KEY)
    ask(keyed, "opta-mistyped-key")
    log = keyed.said()
    assert all(key not in log for key in (ANN_KEY, AGENT_KEY, "opta-mistyped-key"))


def test_a_body_field_can_be_a_hint_of_the_operators(tmp_path):
    config = 'models: [{name: echo, target: "scripted:"}]\nhints: [{body: urgency, values: {low: throughput}}]\n'
    with router(tmp_path, config) as running:
        answer = running.post("/v1/completions", {**BODY, "urgency": "low"})
        assert answer.headers["x-opta-route"] == "hint:urgency"
        assert json.loads(answer.content)["choices"][0]["text"] == "abcdef"
        assert running.post("/v1/completions", {**BODY, "urgency": 5}).json()["error"]["param"] == "urgency"
