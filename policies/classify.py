"""Which model, lane and preset a request gets, and the rule that decided. Pure: configuration and facts in, answer out.

The rules stand in ``routing.order``; the first that decides wins. A hint only asks: what the client's policy does not
grant, and a value that no rule knows, is passed over and reported. ``explain`` walks the very same rules.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import msgspec

from policies.errors import UnknownModel, UnknownPreset
from policies.schema import ClientConfig, Config, HintRule, Lane, LaneName, ModelConfig, PresetConfig

PRESET_HEADER = "x-opta-preset"

Outcome: TypeAlias = Literal["decides", "ignored", "silent"]

# What asking for a lane takes from others, least first. ``auto`` takes the interactive lane only while it has room.
_PRIVILEGE: dict[Lane, int] = {"throughput": 0, "auto": 1, "interactive": 2}


class RequestFacts(msgspec.Struct, frozen=True):
    """What the rules look at.

    ``headers`` have lower-case names; ``body`` holds the top-level text fields of the request's body (``service_tier``
    and the like); ``client`` is the *authenticated* client's configured name, None for an anonymous request.
    """

    model: str
    headers: Mapping[str, str] = {}
    body: Mapping[str, str] = {}
    client: str | None = None


class Classification(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes. ``lane`` may be ``auto``, which admission resolves.

    ``candidates`` are all models behind the name that was asked for, ``model`` the first of them: several may share an
    alias, and which of those answers is for whoever knows their load to say.

    ``route`` names the rule that decided (``hint:x-opta-lane``, ``preset:chat``, ``client:openclaw``, ``default``),
    ``hint`` what the hint that decided said (``x-opta-lane=interactive``), ``hint_ignored`` why others did not count.
    """

    model: str
    lane: Lane
    route: str
    candidates: tuple[str, ...] = ()
    hint: str | None = None
    hint_ignored: str | None = None
    preset: PresetConfig | None = None
    client: ClientConfig | None = None


class Considered(msgspec.Struct, frozen=True):
    """One rule, asked: what it saw (``detail``) and what came of it. ``lane`` is set exactly when it decides."""

    rule: str
    outcome: Outcome
    detail: str
    lane: Lane | None = None
    hint: str | None = None


def classify(config: Config, facts: RequestFacts) -> Classification:
    """Raises :class:`UnknownModel` and :class:`UnknownPreset`."""
    models, preset = named(config, facts)
    client = client_of(config, facts)
    ignored: list[str] = []
    for step in considered(config, facts, preset, client):
        if step.outcome == "ignored":
            ignored.append(step.detail)
        if step.lane is not None:
            return Classification(
                model=models[0].name,
                candidates=tuple(model.name for model in models),
                lane=step.lane,
                route=step.rule,
                hint=step.hint,
                hint_ignored="; ".join(ignored) or None,
                preset=preset,
                client=client,
            )
    raise AssertionError("routing.order does not end with default")  # policies.consistency holds it to that


def named(config: Config, facts: RequestFacts) -> tuple[list[ModelConfig], PresetConfig | None]:
    """The models, at least one, and the preset that a request names. Names match exactly.

    ``model`` may name a model, an alias or a preset. The preset header wins over a preset named as model, and its
    model over the request's, which must still be a known name, or empty.
    """
    presets = {preset.name: preset for preset in config.presets}
    models: dict[str, list[ModelConfig]] = {}
    for model in config.models:
        for name in (model.name, *model.aliases):
            models.setdefault(name, []).append(model)
    asked = facts.headers.get(PRESET_HEADER)
    if asked is not None and asked not in presets:
        raise UnknownPreset(asked, sorted(presets))
    if facts.model not in models and facts.model not in presets and not (asked and facts.model == ""):
        raise UnknownModel(facts.model, sorted([*models, *presets]))
    preset = presets[asked] if asked is not None else presets.get(facts.model)
    return models[preset.model] if preset is not None else models[facts.model], preset


def client_of(config: Config, facts: RequestFacts) -> ClientConfig | None:
    """The configured client of a request; None for an anonymous one, or for one that a reload has removed."""
    return next((client for client in config.clients if client.name == facts.client), None)


def considered(
    config: Config, facts: RequestFacts, preset: PresetConfig | None, client: ClientConfig | None
) -> Iterator[Considered]:
    """Ask every rule in ``routing.order``, lazily: the first answer with a lane is the decision."""
    for rule in config.routing.order:
        if rule == "hint":
            for hint in config.hints:
                yield _ask_hint(config, hint, facts, client)
        elif rule == "preset":
            yield _ask_preset(preset)
        elif rule == "client":
            yield _ask_client(client, facts)
        else:
            yield Considered(
                "default", "decides", f"routing.default is {config.routing.default}", config.routing.default
            )


def may_hint(config: Config, client: ClientConfig | None, lane: Lane) -> bool:
    """Whether a hint for ``lane`` counts.

    A ``may_hint`` list means what it says; whoever may ask for both lanes may leave the choice to us (``auto``).
    Without a list, a client with a lane may ask for that one or one that takes less from others; a client without
    either may ask for anything. So may everyone while no client is configured; once clients are, an anonymous
    request gets no further than ``routing.default``.
    """
    if client is None:
        return not config.clients or _PRIVILEGE[lane] <= _PRIVILEGE[config.routing.default]
    if client.may_hint is not None:
        both: tuple[LaneName, ...] = ("interactive", "throughput")
        return lane in client.may_hint or (lane == "auto" and all(name in client.may_hint for name in both))
    return client.lane is None or _PRIVILEGE[lane] <= _PRIVILEGE[client.lane]


def _ask_hint(config: Config, rule: HintRule, facts: RequestFacts, client: ClientConfig | None) -> Considered:
    name = f"hint:{rule.source}"
    said = facts.headers.get(rule.header) if rule.header is not None else facts.body.get(rule.source)
    if said is None:
        return Considered(name, "silent", f"the request has no {rule.source}")
    value = said.strip().lower()
    match = next(((key, lane) for key, lane in rule.values.items() if key.lower() == value), None)
    if match is None:
        # !a and the cut: this text is a caller's, and it goes into logs and answers.
        return Considered(name, "ignored", f"{rule.source}: no rule for {said[:40]!a}")
    key, lane = match
    if not may_hint(config, client, lane):
        who = f"client {client.name}" if client is not None else "an anonymous client"
        return Considered(name, "ignored", f"{rule.source}: {who} may not ask for {lane}")
    return Considered(name, "decides", f"{rule.source}: {key} asks for {lane}", lane, f"{rule.source}={key}")


def _ask_preset(preset: PresetConfig | None) -> Considered:
    if preset is None:
        return Considered("preset", "silent", "the request names no preset")
    if preset.lane is None:
        return Considered(f"preset:{preset.name}", "silent", f"preset {preset.name} has no lane")
    return Considered(f"preset:{preset.name}", "decides", f"preset {preset.name} has lane {preset.lane}", preset.lane)


def _ask_client(client: ClientConfig | None, facts: RequestFacts) -> Considered:
    if client is None:
        detail = "the request is anonymous" if facts.client is None else "the client is not configured"
        return Considered("client", "silent", detail)
    if client.lane is None:
        return Considered(f"client:{client.name}", "silent", f"client {client.name} has no lane")
    return Considered(f"client:{client.name}", "decides", f"client {client.name} has lane {client.lane}", client.lane)
