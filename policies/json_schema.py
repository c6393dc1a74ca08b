"""The JSON schema of the configuration, for editors. ``python -m policies.json_schema`` writes ``schema.json``."""

from pathlib import Path
from typing import Any

import msgspec

from policies.quantities import schema_hook
from policies.schema import Config

SCHEMA_FILE = Path(__file__).with_name("schema.json")


def json_schema() -> dict[str, Any]:
    """The schema of a whole file. What must hold between values (``policies.consistency``) is not in it."""
    schema = msgspec.json.schema(Config, schema_hook=schema_hook)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def rendered() -> str:
    """The text of ``schema.json``."""
    return msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode() + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(rendered(), encoding="utf-8")
