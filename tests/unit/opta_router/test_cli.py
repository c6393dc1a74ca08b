"""The command line, as a shell sees it: output and exit status."""

import hashlib
import io
import json
import re
import subprocess
import sys
from textwrap import dedent

import pytest

from opta_router.cli import main

CLIENTS = """
    clients:
      - {name: agent, key_sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa, lane: throughput}
    presets:
      - {name: chat, model: opta-tiny, lane: interactive}
"""


@pytest.fixture
def run(capsys):
    """Run a command: exit status, what it printed, what it complained about."""

    def run_it(*argv):
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as usage:
            status = usage.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run_it


@pytest.fixture
def config_file(tmp_path):
    def write(text):
        file = tmp_path / "opta.yaml"
        file.write_text(dedent(text), encoding="utf-8")
        return file

    return write


@pytest.fixture
def body_file(tmp_path):
    def write(body):
        file = tmp_path / "request.json"
        file.write_text(body if isinstance(body, str) else json.dumps(body), encoding="utf-8")
        return file

    return write


# usage


@pytest.mark.parametrize(
    "argv", [[], ["srve"], ["check", "--jsn"], ["explain"], ["serve", "--port", "x"], ["serve", "--log-level", "loud"]]
)
def test_bad_usage_is_a_2_and_says_how(run, argv):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("usage: opta-router")


def test_the_version_is_the_packages(run):
    status, out, _ = run("--version")
    assert status == 0
    assert re.fullmatch(r"opta-router \d+\.\d+\.\d+\S*\n", out)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "--port", "70000"], "server.port"),
        (["serve", "--draft", "embedded:draft"], "--draft"),
        (["serve", "--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
    ],
)
def test_what_cannot_be_served_is_a_2_before_anything_starts(run, argv, said):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.startswith("opta-router: ")
    assert said in err


# check


def test_check_prints_what_is_in_effect_without_a_file(run):
    status, out, err = run("check")
    assert (status, err) == (0, "")
    for said in (": ok", "listens on 127.0.0.1:8400", "model opta-tiny: embedded:target", "lane interactive: weight 8"):
        assert said in out
    assert "not in effect" not in out, "the shipped file is not the operator's wish"


def test_check_as_json_is_the_whole_configuration_without_its_secrets(run, config_file):
    file = config_file(CLIENTS + "    telemetry: {otlp_headers: {authorization: hidden-canary}}\n")
    status, out, _ = run("check", "--json", "--config", file)
    found = json.loads(out)
    assert (status, found["file"]) == (0, str(file))
    assert found["config"]["clients"][0]["name"] == "agent"
    assert found["config"]["lanes"]["interactive"]["weight"] == 8
    assert "hidden-canary" not in out


@pytest.mark.parametrize(
    ("text", "line", "key_path", "found", "allowed"),
    [
        ("lanes:\n  interactive: {weight: heavy}\n", 2, "lanes.interactive.weight", "heavy", "a number"),
        ("lanes:\n  interactive:\n    max_quee: 3\n", 3, "lanes.interactive.max_quee", None, "max_queue"),
        ("routing: {order: [hint]}\n", 1, "routing.order", "hint", "default"),
        ("server: {drain_timeout: soon}\n", 1, "server.drain_timeout", "soon", "30s"),
    ],
)
def test_a_bad_file_is_a_2_that_names_line_key_what_was_found_and_what_is_allowed(
    run, config_file, text, line, key_path, found, allowed
):
    file = config_file(text)
    status, out, err = run("check", "--config", file)
    assert (status, out) == (2, "")
    where, _, problem = err.strip().partition("; ")
    assert where.startswith(f"opta-router: {file}:{line}: {key_path}")
    assert (found or "") in problem
    assert allowed in problem


@pytest.mark.parametrize("text", ["lanes: [", "- a\n", "a: 1\na: 2\n", "\x00", ""])
def test_a_file_that_is_no_yaml_mapping_is_a_2_on_one_line(run, config_file, text):
    status, out, err = run("check", "--config", config_file(text))
    assert (status, out, err.count("\n")) == (2, "", 1)


# explain


@pytest.mark.parametrize(
    ("options", "lane", "route"),
    [
        ([], "auto", "default"),
        (["-H", "X-Opta-Lane: throughput"], "throughput", "hint:x-opta-lane"),
        (["-H", "x-smg-priority: bulk", "-H", "X-Opta-Lane:auto"], "auto", "hint:x-opta-lane"),
        (["--client", "agent"], "throughput", "client:agent"),
        (["--client", "agent", "-H", "X-Opta-Lane: interactive"], "throughput", "client:agent"),
        (["--client", "agent", "-H", "X-Opta-Preset: chat"], "interactive", "preset:chat"),
    ],
)
def test_explain_names_the_lane_and_the_rule_that_decides(run, config_file, body_file, options, lane, route):
    body = body_file({"model": "auto", "messages": []})
    argv = ["explain", "--config", config_file(CLIENTS), "--request", body, *options]
    status, out, _ = run(*argv)
    assert status == 0
    assert out.startswith(f"model opta-tiny, lane {lane}, decided by {route}\n")
    found = json.loads(run(*argv, "--json")[1])
    assert (found["lane"], found["route"]) == (lane, route)
    decides = [rule["rule"] for rule in found["rules"] if rule["outcome"] == "decides"]
    assert decides == [route] + ["auto:room"] * (lane == "auto")


def test_explain_says_what_auto_would_choose_and_by_what(run, body_file):
    tool = {"type": "function", "function": {"name": "f"}}
    messages = [{"role": "user", "content": "x" * 400}]
    body = {"model": "auto", "messages": messages, "tools": [tool], "tool_choice": "none", "max_tokens": 9}
    _, out, _ = run("explain", "--request", body_file(body))
    assert "auto:tools: decides: on an idle router lane throughput: about 100 prompt tokens, at most 9" in out


def test_explain_reads_the_body_from_a_pipe_and_its_fields_are_hints(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"model": "opta-tiny", "service_tier": "flex"}'))
    status, out, _ = run("explain", "--request", "-")
    assert status == 0
    assert "lane throughput, decided by hint:service_tier" in out


@pytest.mark.parametrize(
    ("body", "options", "said"),
    [
        ("{", [], "not valid JSON"),
        ("[" * 100_000, [], "not valid JSON"),
        ("[]", [], "model"),
        ({"model": 5}, [], "model"),
        ({"model": "gpt-4"}, [], "configured: auto, opta-tiny"),
        ({"model": "auto"}, ["-H", "no colon"], "'Name: value'"),
        ({"model": "auto"}, ["--client", "nobody"], "'nobody'"),
    ],
)
def test_explain_refuses_what_is_no_request_with_a_2(run, body_file, body, options, said):
    status, out, err = run("explain", "--request", body_file(body), *options)
    assert (status, out) == (2, "")
    assert said in err


def test_an_interrupted_command_is_a_1(run, monkeypatch):
    class Interrupted(io.StringIO):
        def read(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert run("explain", "--request", "-") == (1, "", "")


def test_explain_of_a_file_that_is_not_there_is_a_2(run):
    status, _, err = run("explain", "--request", "/no/such/file.json")
    assert status == 2
    assert "/no/such/file.json" in err


# key


def test_a_key_is_random_long_and_its_digest_is_what_the_configuration_takes(run, config_file):
    status, out, _ = run("key")
    key, digest = (line.split()[1] for line in out.splitlines())
    assert status == 0
    assert hashlib.sha256(key.encode()).hexdigest() == digest
    assert len(key) >= 22, "128 bits in base 64"
    assert key not in run("key")[1]
    assert run("check", "--config", config_file(f"clients: [{{name: a, key_sha256: {digest}}}]"))[0] == 0


# probe, with a host that needs no weights


def test_probe_says_lane_by_lane_what_a_model_can_do(run, config_file):
    file = config_file("models: [{name: echo, target: 'scripted:'}]")
    status, out, _ = run("probe", "--config", file)
    assert status == 0
    assert "model echo: loads" in out
    assert "interactive: speculation off: no_draft, by scripted" in out
    assert "throughput: speculation off: lane, by scripted" in out


def test_probe_is_a_1_where_no_model_loads_and_says_why(run, config_file):
    file = config_file("models: [{name: gone, target: /no/such/directory}]")
    status, out, _ = run("probe", "--json", "--config", file)
    found = json.loads(out)
    assert (status, found["status"], found["problem"]) == (1, "failed", "no model could be loaded")
    assert "/no/such/directory" in found["models"][0]["problem"]


def test_a_command_that_serves_nothing_does_not_wait_for_what_serving_imports():
    imported = "import sys, opta_router.cli; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", imported], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "opta_router.cli" in modules
    assert {"opentelemetry.sdk", "starlette", "prometheus_client", "mlx"}.isdisjoint(modules)
