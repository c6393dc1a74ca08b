"""Keys of the contract that are accepted, and that nothing acts on yet: said aloud rather than ignored in silence."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

NOT_IN_EFFECT: Mapping[str, str] = MappingProxyType(
    {
    }
)


def not_in_effect(written: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of what an operator wrote (``Loaded.written``), the key paths without effect, each with why."""
    return [(key_path, why) for key_path, why in NOT_IN_EFFECT.items() if _is_set(written, key_path)]


def _is_set(written: Mapping[str, Any], key_path: str) -> bool:
    here: object = written
    for key in key_path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return False
        here = here[key]
    return True
