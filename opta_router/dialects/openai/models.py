"""OpenAI's model list: models, their aliases, and presets, which can be named as models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from lanes import wire
from policies.schema import Config, ModelConfig, PresetConfig

OWNER = "opta-router"


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands beside OpenAI's fields. ``model`` is what an alias or a preset leads to."""

    kind: Literal["model", "alias", "preset"]
    model: str
    loaded: bool
    lane: str | None = None
    draft: str | None = None
    context_tokens: int | None = None


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One name that a request's ``model`` may be."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = OWNER
    opta: ModelFacts


class ModelList(msgspec.Struct, frozen=True):
    """``GET /v1/models``."""

    data: tuple[ModelEntry, ...]
    object: Literal["list"] = "list"


def encode_models(config: Config, loaded: Mapping[str, wire.ModelInfo], created: int) -> bytes:
    """Every name, in the configuration's order."""
    return msgspec.json.encode(ModelList(tuple(_entries(config, loaded, created))))


def encode_model(name: str, config: Config, loaded: Mapping[str, wire.ModelInfo], created: int) -> bytes | None:
    """One name, exactly; None if it is not configured."""
    entry = next((entry for entry in _entries(config, loaded, created) if entry.id == name), None)
    return None if entry is None else msgspec.json.encode(entry)


def _entries(config: Config, loaded: Mapping[str, wire.ModelInfo], created: int) -> Iterator[ModelEntry]:
    by_name: dict[str, ModelConfig] = {}
    for model in config.models:
        for name in (model.name, *model.aliases):
            if name in by_name:
                continue  # an alias that several models share stands once
            by_name[name] = model
            yield _entry(name, model, loaded, created, None)
    for preset in config.presets:
        yield _entry(preset.name, by_name[preset.model], loaded, created, preset)


def _entry(
    name: str, model: ModelConfig, loaded: Mapping[str, wire.ModelInfo], created: int, preset: PresetConfig | None
) -> ModelEntry:
    info = loaded.get(model.name)
    facts = ModelFacts(
        kind="preset" if preset is not None else "model" if name == model.name else "alias",
        model=model.name,
        loaded=info is not None,
        lane=preset.lane if preset is not None else None,
        draft=model.draft,
        context_tokens=info.context_tokens if info is not None else None,
    )
    return ModelEntry(id=name, created=created, opta=facts)
