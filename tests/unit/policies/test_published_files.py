"""The files that ship beside the code agree with it."""

import ast
import json
from pathlib import Path
from typing import Any

import msgspec

import policies
from policies.json_schema import SCHEMA_FILE, rendered
from policies.load import load
from policies.quantities import decode_hook
from policies.schema import plain

CONTRACT = Path(__file__).with_name("contract.yaml")


def test_the_published_schema_is_that_of_the_code() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == rendered(), "run: python -m policies.json_schema"


def test_the_published_schema_allows_no_unknown_key_anywhere() -> None:
    definitions: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$defs"]
    assert definitions
    assert all(definition["additionalProperties"] is False for definition in definitions.values())


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
