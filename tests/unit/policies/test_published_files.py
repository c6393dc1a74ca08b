"""The files that ship beside the code agree with it."""

import ast
import json
from pathlib import Path
from typing import Any

import msgspec

import policies
from policies.json_schema import SCHEMA_FILE, rendered
from policies.load import load, load_with_source
from policies.not_in_effect import NOT_IN_EFFECT, not_in_effect
from policies.quantities import decode_hook
from policies.schema import plain

CONTRACT = Path(__file__).with_name("contract.yaml")


def test_the_published_schema_is_that_of_the_code() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == rendered(), "run: python -m policies.json_schema"


def test_the_published_schema_allows_no_unknown_key_anywhere() -> None:
    definitions: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$defs"]
    assert definitions
    assert all(definition["additionalProperties"] is False for definition in definitions.values())


def test_every_key_without_effect_is_a_key_of_the_configuration() -> None:
    for key_path in NOT_IN_EFFECT:
        here: Any = plain(load())
        for key in key_path.split("."):
            here = here[key]


def test_keys_without_effect_are_reported_if_and_only_if_someone_wrote_them() -> None:
    assert not_in_effect({}) == []
    for key_path, why in NOT_IN_EFFECT.items():
        section, key = key_path.split(".")
        assert not_in_effect({"lanes": None, section: {key: 1, "other": 1}}) == [(key_path, why)]
    written = load_with_source(CONTRACT).written
    assert {key_path for key_path, _why in not_in_effect(written)} == set(NOT_IN_EFFECT)


def test_the_package_imports_neither_engines_nor_servers() -> None:
    allowed = {"policies", "msgspec", "yaml"}
    outside = {"lanes", "opta_router", "mlx", "mlx_lm", "vllm_mlx", "starlette", "hypercorn", "opentelemetry", "anyio"}
    imported: set[str] = set()
    for file in Path(policies.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.partition(".")[0] for name in names}
    assert allowed <= imported
    assert not imported & outside


def test_a_configuration_survives_its_own_plain_form_but_for_secrets() -> None:
    config = load()
    assert plain(msgspec.convert(plain(config), type(config), dec_hook=decode_hook)) == plain(config)
