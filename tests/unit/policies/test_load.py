from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.errors import ConfigError
from policies.load import DEFAULT_FILE, load, with_overrides
from policies.schema import Config, plain

Load = Callable[[str], Config]
Refuse = Callable[[str], ConfigError]

CONTRACT = Path(__file__).with_name("contract.yaml")


def test_the_contracts_example_loads_with_its_values() -> None:
    config = load(CONTRACT)

    assert config.server.drain_timeout == 30.0
    assert config.models[0].keep_alive == 600.0
    assert config.lanes.interactive.spill == "throughput"
    assert config.lanes.throughput.queue_timeout == 300.0
    assert config.presets[0].sampling.temperature == 0.7
    assert config.clients[0].may_hint == ("interactive", "throughput")
    assert config.hints[3].body == "service_tier"
    assert config.memory.shed.fraction == 0.95


def test_without_a_file_the_embedded_pair_is_served() -> None:
    (model,) = load().models

    assert (model.name, model.target, model.draft) == ("opta-tiny", "embedded:target", "embedded:draft")
    assert model.aliases == ("auto",)
    assert model.preload


def test_the_shipped_file_says_what_the_schema_defaults_to(load_text: Load) -> None:
    assert plain(load_text("{}")) == plain(load())


def test_absent_models_and_hints_are_the_shipped_ones_and_present_ones_replace_them(load_text: Load) -> None:
    assert load_text("server: {port: 1}").models == load().models
    config = load_text("models: [{name: mine, target: org/mine}]\nhints: []")
    assert [model.name for model in config.models] == ["mine"]
    assert config.hints == ()


def test_off_is_a_word_and_not_false(load_text: Load) -> None:
    config = load_text("lanes: {interactive: {speculation: {mode: off}}}")
    assert config.lanes.interactive.speculation.mode == "off"


def test_an_unknown_key_is_named_with_its_line_the_allowed_keys_and_the_nearest_one(refusal: Refuse) -> None:
    error = refusal(
        """\
        server:
          port: 1
        lanes:
          interactive:
            wieght: 8
        """
    )
    assert error.key_path == "lanes.interactive.wieght"
    assert error.line == 5
    assert error.suggestion == "weight"
    assert "max_active" in (error.allowed or "")
    assert str(error).startswith(f"{error.file}:5: lanes.interactive.wieght: unknown key; allowed: weight, max_active")
    assert str(error).endswith("(did you mean 'weight'?)")


CLIENT = "clients: [{name: a, key_sha256: " + "a" * 64 + ", %s}]"


@pytest.mark.parametrize(
    ("text", "key_path", "found", "allowed"),
    [
        ("server: {port: 70000}", "server.port", "70000", "65535"),
        ("server: {port: '80'}", "server.port", "'80'", "a whole number"),
        ("server: {drain_timeout: soon}", "server.drain_timeout", "'soon'", "30s"),
        ("server: {max_body: 0}", "server.max_body", "0", "4MiB"),
        ("server: null", "server", "nothing", "a mapping with the keys host"),
        ("server: {allowed_origins: ['*']}", "server.allowed_origins[0]", "'*'", "matching"),
        ("lanes: {interactive: {weight: 0}}", "lanes.interactive.weight", "0", "a number > 0"),
        ("lanes: {interactive: {weight: .inf}}", "lanes.interactive.weight", "'.inf'", "a number"),
        ("lanes: {interactive: {weight: !!float .nan}}", "lanes.interactive.weight", "", ""),
        ("lanes: {interactive: {max_active: 0}}", "lanes.interactive.max_active", "0", ">= 1"),
        ("lanes: {interactive: {spill: interactive}}", "lanes.interactive.spill", "'interactive'", "throughput"),
        ("lanes: {throughput: {spill: throughput}}", "lanes.throughput.spill", "'throughput'", "interactive"),
        ("lanes: {interactive: {spill: fast}}", "lanes.interactive.spill", "'fast'", "throughput or null"),
        ("lanes: {interactive: {speculation: {mode: on}}}", "lanes.interactive.speculation.mode", "'on'", "require"),
        ("models: []", "models", "an empty list", "at least one"),
        ("models: [{target: x}]", "models[0].name", None, "text"),
        ("models: [{name: 'a b', target: x}]", "models[0].name", "'a b'", "matching"),
        ("models: [{name: a, target: x}, {name: a, target: y}]", "models[1].name", "'a'", None),
        ("models: [{name: a, target: x, aliases: [b]}, {name: b, target: y}]", "models[1].name", "'b'", None),
        ("models: [{name: a, target: x, aliases: [c, c]}]", "models[0].aliases[1]", "'c'", None),
        ("models: [{name: a, target: x, keep_alive: -2}]", "models[0].keep_alive", "-2", "-1 (never)"),
        ("presets: [{name: opta-tiny, model: opta-tiny}]", "presets[0].name", "'opta-tiny'", None),
        ("presets: [{name: p, model: gpt-9}]", "presets[0].model", "'gpt-9'", "opta-tiny, auto"),
        ("presets: [{name: p, model: auto, sampling: {top_p: 0}}]", "presets[0].sampling.top_p", "0", "<= 1 or null"),
        (CLIENT % "may_hint: [turbo]", "clients[0].may_hint[0]", "'turbo'", "interactive, throughput, auto"),
        ("hints: [{values: {a: auto}}]", "hints[0]", "neither", "either header or body"),
        ("hints: [{header: a, body: b, values: {a: auto}}]", "hints[0]", "both", "either header or body"),
        ("hints: [{header: X-Up, values: {a: auto}}]", "hints[0].header", "'X-Up'", "matching"),
        ("hints: [{header: a, values: {}}]", "hints[0].values", "a mapping of 0", "not empty"),
        ("hints: [{header: a, values: {x: auto, y: fast}}]", "hints[0].values.y", "'fast'", "interactive"),
        ("hints: [{header: a, values: {x: auto, X: auto}}]", "hints[0].values.X", "'x'", None),
        ("hints: [{header: a, values: {x: auto}}, {header: a, values: {y: auto}}]", "hints[1]", None, None),
        ("routing: {order: [hint]}", "routing.order", "the last is hint", "default"),
        ("routing: {order: [default, hint]}", "routing.order", "the last is hint", "default"),
        ("routing: {order: [hint, hint, default]}", "routing.order[1]", "'hint'", None),
        ("routing: {default: fast}", "routing.default", "'fast'", "auto"),
        ("speculation: {denied: [{reason: no}]}", "speculation.denied[0]", None, "at least one"),
        ("speculation: {min_acceptance: 2}", "speculation.min_acceptance", "2", "<= 1"),
        ("memory: {limit: 95%, shed: 90%}", "memory.shed", "shed 90%, limit 95%", None),
        ("memory: {limit: 0%}", "memory.limit", "'0%'", "90%"),
        ("memory: {prompt_caches: 0%}", "memory.prompt_caches", "'0%'", "90%"),
        ("memory: {limit: 20%, prompt_caches: 30%}", "memory.prompt_caches", "prompt_caches 30%", "or less"),
        ("memory: {limit: 2GiB, prompt_caches: 3GiB}", "memory.prompt_caches", "prompt_caches 3221", "or less"),
        ("telemetry: {otlp_endpoint: 'localhost:4318'}", "telemetry.otlp_endpoint", "'localhost:4318'", "matching"),
        ('"server\\nx": 1', "'server\\nx'", None, "server, models"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_key_path_line_and_what_is_allowed(
    refusal: Refuse, text: str, key_path: str, found: str | None, allowed: str | None
) -> None:
    error = refusal(text)
    assert (error.key_path, error.line) == (key_path, 1)
    assert found is None or found in (error.found or "")
    assert allowed is None or allowed in (error.allowed or "")


def test_two_clients_cannot_share_a_name_or_a_key_and_the_key_is_not_shown(refusal: Refuse) -> None:
    digest, other = "a" * 64, "b" * 64
    same_name = refusal(f"clients: [{{name: a, key_sha256: {digest}}}, {{name: a, key_sha256: {other}}}]")
    same_key = refusal(f"clients: [{{name: a, key_sha256: {digest}}}, {{name: b, key_sha256: {digest.upper()}}}]")

    assert same_name.key_path == "clients[1].name"
    assert same_key.key_path == "clients[1].key_sha256"
    assert digest not in str(same_key)


def test_a_client_cannot_have_the_admin_key(refusal: Refuse) -> None:
    digest = "a" * 64
    error = refusal(f"server: {{admin_key_sha256: {digest}}}\nclients: [{{name: a, key_sha256: {digest}}}]")
    assert (error.key_path, error.line) == ("clients[0].key_sha256", 2)


def test_a_key_pasted_where_its_digest_belongs_is_not_repeated_in_the_error(refusal: Refuse) -> None:
    error = refusal("clients: [{name: a, key_sha256: opta-secret-key}]")
    assert error.key_path == "clients[0].key_sha256"
    assert "opta-secret-key" not in str(error)
    assert "64 hexadecimal digits" in str(error)


def test_plain_data_of_a_configuration_holds_no_secret(load_text: Load) -> None:
    config = load_text(
        f"clients: [{{name: a, key_sha256: {'a' * 64}}}]\ntelemetry: {{otlp_headers: {{authorization: hunter2}}}}"
    )
    assert config.telemetry.otlp_headers["authorization"] == "hunter2"
    assert "hunter2" not in str(plain(config))
    assert "a" * 64 not in str(plain(config))
    assert "hunter2" not in repr(config)


def test_the_line_is_that_of_the_key_in_a_list_of_mappings(refusal: Refuse) -> None:
    error = refusal(
        """\
        models:
          - name: a
            target: x
          - name: b
            target: 5
        """
    )
    assert (error.key_path, error.line) == ("models[1].target", 5)


def test_a_missing_key_has_the_line_of_its_mapping(refusal: Refuse) -> None:
    error = refusal("models:\n  - name: a\n    target: x\n  - name: b\n")
    assert (error.key_path, error.line, error.problem) == ("models[1].target", 4, "is missing")


def test_a_clash_with_a_shipped_model_is_reported_where_the_file_causes_it(refusal: Refuse) -> None:
    error = refusal("presets: [{name: auto, model: opta-tiny}]")
    assert (error.key_path, error.line) == ("presets[0].name", 1)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (b"", None, "empty"),
        (b"# only a comment\n", None, "empty"),
        (b"[1, 2]", 1, "not a mapping"),
        (b"server:\n\tport: 1\n", 2, "tab"),
        (b"server: {port: 1\nmodels: []\n", 2, "not valid YAML"),
        (b"server: 'open\n", 2, "not valid YAML"),
        (b"server: {port: 1}\nserver: {port: 2}\n", 2, "twice"),
        (b"server:\n  port: 1\n  port: 2\n", 3, "twice"),
        (b"a: 1\n---\nb: 2\n", 2, "single document"),
        (b"server: *nowhere\n", 1, "nowhere"),
        (b"server: !!python/object/apply:os.system ['true']\n", 1, "tags are not supported"),
        (b"server: !mine {port: 1}\n", 1, "tags are not supported"),
        (b"server: {port: !!int x}\n", 1, "tags are not supported"),
        (b"1: x\n", 1, "a key is not text"),
        (b"? [a]\n: x\n", 1, "a key is not text"),
        (b"server:\n  host: \xff\n", 2, "not UTF-8"),
        (b"server:\n  host: \x07\n", 2, "not valid YAML"),
        (b"a: &x [*x]\n", 1, "nested too deeply"),
        (b"[" * 5000, None, "nested too deeply"),
        (b"a: " + b"[" * 40 + b"]" * 40, 1, "nested too deeply"),
        (b"#" * 300_000, None, "too large"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_a_usable_yaml_file_is_refused_with_its_line(
    tmp_path: Path, content: bytes, line: int | None, words: str
) -> None:
    file = tmp_path / "opta.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert (caught.value.file, caught.value.line) == (file, line)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_expands(refusal: Refuse) -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too many values" in str(refusal("\n".join(["l0: &l0 [x]", *levels])))


def test_an_alias_stands_for_what_it_names(load_text: Load) -> None:
    config = load_text("server: {drain_timeout: &t 7s, body_timeout: *t}")
    assert config.server.body_timeout == 7.0


def test_a_missing_file_and_a_directory_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="directory"):
        load(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "opta.yaml"
    file.write_bytes(b"\xef\xbb\xbfserver: {port: 9}")
    assert load(file).server.port == 9


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_a_configuration_or_a_configuration_error(tmp_path: Path, data: st.DataObject) -> None:
    text = CONTRACT.read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    damage = data.draw(st.text(alphabet="ab1:{}[]-,'\"\n\t &*!%#|>?é\x00", max_size=8))
    file = tmp_path / "damaged.yaml"
    file.write_text(text[:start] + damage + text[end:], encoding="utf-8")
    try:
        outcome: Config | str = load(file)
    except ConfigError as error:
        outcome = str(error)
    assert isinstance(outcome, Config) or "\n" not in outcome


def test_the_command_line_can_replace_the_model_the_host_and_the_port() -> None:
    config = with_overrides(load(), target="mlx-community/Qwen3-4B-4bit", draft="org/tiny", host="::1", port=0)

    (model,) = config.models
    assert (model.name, model.target, model.draft) == ("Qwen3-4B-4bit", "mlx-community/Qwen3-4B-4bit", "org/tiny")
    assert model.aliases == ("auto",)
    assert (config.server.host, config.server.port) == ("::1", 0)
    assert config.speculation.approved[0].draft == "org/tiny"


def test_a_model_directory_with_a_strange_name_still_gets_a_usable_one() -> None:
    (model,) = with_overrides(load(), target="/models/My Model (v2)/").models
    assert (model.name, model.target) == ("My-Model-v2-", "/models/My Model (v2)/")


@pytest.mark.parametrize(("port", "draft", "key_path"), [(70000, None, "server.port"), (None, "x", "--draft")])
def test_a_wrong_override_is_refused(port: int | None, draft: str | None, key_path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(load(), port=port, draft=draft)
    assert caught.value.key_path == key_path


def test_no_override_changes_nothing() -> None:
    assert with_overrides(load()) == load()


def test_every_setting_of_the_schema_stands_in_the_file_that_operators_copy() -> None:
    text = DEFAULT_FILE.read_text(encoding="utf-8")
    sections = {"server", "lanes", "routing", "speculation", "memory", "telemetry"}

    def keys(data: dict[str, object]) -> set[str]:
        inner = [keys(value) for value in data.values() if isinstance(value, dict)]
        return set(data).union(*inner)

    written = keys({name: value for name, value in plain(load()).items() if name in sections})
    assert {key for key in written if f"{key}:" not in text} == set()
