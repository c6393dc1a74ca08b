"""What becomes of the configuration in force when another one is read, or a lane is set by hand."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.consistency import problems
from policies.errors import ConfigError, RestartRequired
from policies.load import load, load_with_source
from policies.reload import FIXED, Reload, reload, with_lane_settings
from policies.schema import Config
from policies.validation import decode

Load = Callable[[str], Config]

KEY = hashlib.sha256(b"a key").hexdigest()

OLD = f"""
server: {{port: 8400}}
models: [{{name: m, target: t, draft: d}}]
lanes:
  interactive: {{weight: 8, max_queue: 32, speculation: {{mode: auto, max_draft_tokens: 8}}}}
  throughput: {{max_active: 32, max_step_ms: 50}}
presets: [{{name: p, model: m, sampling: {{top_p: 0.5}}}}]
clients: [{{name: ann, key_sha256: {KEY}, weight: 1}}]
hints: [{{header: x-lane, values: {{fast: interactive}}}}]
routing: {{default: auto}}
"""


def at(config: Any, key_path: str) -> Any:
    for key in key_path.split("."):
        config = getattr(config, key)
    return config


@pytest.mark.parametrize(
    ("before", "after", "key_path"),
    [
        ("weight: 8", "weight: 4", "lanes.interactive.weight"),
        ("max_queue: 32", "max_queue: 0", "lanes.interactive.max_queue"),
        ("{weight: 8", "{max_active: 3, weight: 8", "lanes.interactive.max_active"),
        ("{weight: 8", "{spill: throughput, weight: 8", "lanes.interactive.spill"),
        ("{weight: 8", "{queue_timeout: 1m, weight: 8", "lanes.interactive.queue_timeout"),
        ("mode: auto", "mode: off", "lanes.interactive.speculation.mode"),
        ("max_step_ms: 50", "max_step_ms: 20", "lanes.throughput.max_step_ms"),
        ("top_p: 0.5", "top_p: 0.6", "presets[0].sampling.top_p"),
        ("{name: p, model: m", "{name: q, model: m", "presets"),
        ("weight: 1}", "weight: 2}", "clients[0].weight"),
        ("name: ann", "name: bob", "clients"),
        ("fast: interactive", "fast: throughput", "hints[0].values"),
        ("default: auto", "default: throughput", "routing.default"),
        ("default: auto", "order: [client, default]", "routing.order"),
        ("routing:", "speculation: {denied: [{family: f, reason: r}]}\nrouting:", "speculation.denied"),
        ("routing:", "speculation: {min_acceptance: 0.5}\nrouting:", "speculation.min_acceptance"),
    ],
)
def test_policy_changes_at_once(load_text: Load, before: str, after: str, key_path: str) -> None:
    old, new = load_text(OLD), load_text(OLD.replace(before, after))
    assert new != old
    assert reload(old, new) == Reload(new, (key_path,), ())


@pytest.mark.parametrize(
    ("before", "after", "key_path"),
    [
        ("port: 8400", "port: 8401", "server.port"),
        ("port: 8400", f"admin_key_sha256: {'b' * 64}", "server.admin_key_sha256"),
        ("draft: d", "draft: e", "models[0].draft"),
        ("models: [", "models: [{name: n, target: t}, ", "models"),
        ("max_active: 32", "max_active: 64", "lanes.throughput.max_active"),
        ("max_draft_tokens: 8", "max_draft_tokens: 4", "lanes.interactive.speculation.max_draft_tokens"),
        ("routing:", "memory: {limit: 50%}\nrouting:", "memory.limit"),
        ("routing:", "telemetry: {sample_ratio: 0.5}\nrouting:", "telemetry.sample_ratio"),
    ],
)
def test_what_was_fixed_at_the_start_keeps_its_value_and_is_named(
    load_text: Load, before: str, after: str, key_path: str
) -> None:
    old, new = load_text(OLD), load_text(OLD.replace(before, after).replace("weight: 8", "weight: 2"))
    result = reload(old, new)
    assert (result.changed, result.needs_restart) == (("lanes.interactive.weight",), (key_path,))
    assert result.config == load_text(OLD.replace("weight: 8", "weight: 2"))
    assert reload(result.config, new).needs_restart == (key_path,), "until it has been restarted"


def refused(tmp_path: Path, old: str, new: str) -> ConfigError:
    (tmp_path / "old.yaml").write_text(dedent(old), "utf-8")
    (tmp_path / "new.yaml").write_text(dedent(new), "utf-8")
    loaded = load_with_source(tmp_path / "new.yaml")
    with pytest.raises(ConfigError) as caught:
        reload(load(tmp_path / "old.yaml"), loaded.config, loaded.source)
    assert caught.value.file == tmp_path / "new.yaml"
    return caught.value


def test_a_preset_of_a_model_that_waits_for_a_restart_is_refused_with_its_line_and_why(tmp_path: Path) -> None:
    new = OLD.replace("models: [", "models: [{name: n, target: t}, ").replace("model: m", "model: n")
    error = refused(tmp_path, OLD, new)
    assert (error.line, error.key_path, error.found, error.allowed) == (7, "presets[0].model", "'n'", "m")
    assert error.problem == "is not a model (waiting for a restart: models)"


def test_the_admin_key_in_force_cannot_become_a_clients(tmp_path: Path) -> None:
    error = refused(tmp_path, f"server: {{admin_key_sha256: {KEY}}}", f"clients: [{{name: a, key_sha256: {KEY}}}]")
    assert (error.line, error.key_path) == (1, "clients[0].key_sha256")
    assert KEY not in str(error)


SOME_CONFIGS = st.builds(
    lambda port, weight, batch, draft, preset, clients: decode(
        {
            "server": {"port": port},
            "models": [{"name": "m", "target": "t"}, {"name": f"n{port}", "target": "t"}],
            "lanes": {
                "interactive": {"weight": weight, "speculation": {"max_draft_tokens": draft}},
                "throughput": {"max_active": batch, "weight": weight},
            },
            "presets": [{"name": "p", "model": preset if preset == "m" else f"n{port}"}],
            "clients": [{"name": f"c{at}", "key_sha256": f"{at:064}"} for at in range(clients)],
        },
        Config,
    ),
    port=st.integers(1, 3),
    weight=st.integers(1, 3),
    batch=st.integers(1, 3),
    draft=st.integers(1, 3),
    preset=st.sampled_from(["m", "n"]),
    clients=st.integers(0, 2),
)


@given(old=SOME_CONFIGS, new=SOME_CONFIGS)
def test_a_reload_is_refused_or_whole_and_a_second_one_of_the_same_changes_nothing(old: Config, new: Config) -> None:
    if new.presets[0].model not in {model.name for model in old.models}:
        with pytest.raises(ConfigError, match=r"^presets\[0\]\.model: is not a model"):
            reload(old, new)
        return
    result = reload(old, new)
    assert list(problems(result.config)) == []
    for path in FIXED:
        assert at(result.config, ".".join(map(str, path))) == at(old, ".".join(map(str, path)))
    assert (result.config.presets, result.config.clients) == (new.presets, new.clients)
    assert result.config.lanes.interactive.weight == new.lanes.interactive.weight
    assert bool(result.changed) == (result.config != old)
    assert bool(result.needs_restart) == (result.config != new)
    assert reload(result.config, new) == Reload(result.config, (), result.needs_restart)


# one lane, by hand


def test_settings_of_one_lane_are_written_as_in_the_file_and_leave_the_rest_alone() -> None:
    old = load()
    settings = {"weight": 2, "max_active": 3, "max_queue": 0, "queue_timeout": "1m30s"}
    result = with_lane_settings(old, "interactive", settings)
    lane = result.config.lanes.interactive
    assert (lane.weight, lane.max_active, lane.max_queue, lane.queue_timeout) == (2.0, 3, 0, 90.0)
    assert result.changed == tuple(f"lanes.interactive.{name}" for name in settings)
    restored = with_lane_settings(result.config, "interactive", msgspec.to_builtins(settings_of(old))).config
    assert restored == old
    assert with_lane_settings(old, "throughput", {}) == Reload(old, (), ())


def settings_of(config: Config) -> dict[str, Any]:
    lane = config.lanes.interactive
    return {
        "weight": lane.weight,
        "max_active": lane.max_active,
        "max_queue": lane.max_queue,
        "queue_timeout": float(lane.queue_timeout),
    }


@pytest.mark.parametrize(
    ("settings", "key_path", "found", "allowed"),
    [
        ({"weight": 0}, "weight", "0", "> 0"),
        ({"weight": 1001}, "weight", "1001", "<= 1000"),
        ({"weight": True}, "weight", "true", "a number"),
        ({"weight": None}, "weight", "nothing", "a number"),
        ({"weight": 1, "max_active": 0}, "max_active", "0", ">= 1"),
        ({"max_queue": -1}, "max_queue", "-1", ">= 0"),
        ({"max_queue": 1.5}, "max_queue", "1.5", "a whole number"),
        ({"queue_timeout": "soon"}, "queue_timeout", "'soon'", "30s"),
        ({"wieght": 1}, "wieght", None, "weight, max_active, max_queue, queue_timeout"),
        ({"spill": "throughput"}, "spill", None, "weight, max_active, max_queue, queue_timeout"),
    ],
)
def test_settings_have_the_files_bounds_and_no_other_names(
    settings: dict[str, Any], key_path: str, found: str | None, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        with_lane_settings(load(), "interactive", settings)
    assert caught.value.key_path == f"lanes.interactive.{key_path}"
    assert caught.value.found == found
    assert allowed in (caught.value.allowed or "")


def test_a_batch_size_that_the_engine_was_loaded_with_needs_a_restart() -> None:
    with pytest.raises(RestartRequired) as caught:
        with_lane_settings(load(), "throughput", {"weight": 2, "max_active": 33})
    assert caught.value.key_path == "lanes.throughput.max_active"
    assert with_lane_settings(load(), "throughput", {"max_active": 32}).changed == ()
