"""What ``bench matrix`` asks, and of which service."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from bench.prompts import CLASSES, PromptClass
from lanes.wire import Lane
from policies.errors import ConfigError
from policies.load import load, with_overrides
from policies.schema import Config, plain

LANES: Final[tuple[Lane, Lane]] = ("interactive", "throughput")

Profile: TypeAlias = Literal["full", "short", "own"]
"""Which bounds a result is held against: what is measured for a minute says less."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The cells of a run. ``prompts`` are taken of each class, from its beginning; 0: all. The throughput lane, where
    nothing speculates, is asked those of ``throughput_classes``.

    ``interactive`` and ``throughput``: requests at once, in that lane. Beside ``background`` streams ``busy_prompts``
    prompts of the first class are asked in either lane; 0 streams: none are.
    """

    profile: Profile = "full"
    classes: tuple[PromptClass, ...] = CLASSES
    prompts: int = 0
    rounds: int = 3
    max_tokens: int = 96
    temperature: float = 0.0
    interactive: tuple[int, ...] = (1, 4)
    throughput: tuple[int, ...] = (1, 8)
    throughput_classes: tuple[PromptClass, ...] = CLASSES
    background: int = 8
    busy_prompts: int = 6
    busy_rounds: int = 3
    busy_tokens: int = 8
    seed: int = 1

    def of_lane(self, lane: Lane) -> tuple[PromptClass, ...]:
        """The classes that are asked in that lane."""
        return tuple(name for name in self.classes if lane == "interactive" or name in self.throughput_classes)

    def at_once(self, lane: Lane) -> tuple[int, ...]:
        """Numbers of requests at once, in that lane."""
        return self.interactive if lane == "interactive" else self.throughput


FULL: Final = Plan()
SHORT: Final = Plan(
    profile="short",
    prompts=2,
    rounds=5,
    max_tokens=16,
    interactive=(1,),
    throughput=(2,),
    throughput_classes=("code",),
    background=2,
    busy_prompts=2,
)
"""Under a minute for the embedded pair on two cores."""


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One model under measurement, named as in the configuration."""

    model: str
    target: str
    draft: str | None


def subject_config(file: Path | None, target: str | None, draft: str | None) -> Config:
    """The configuration to measure: a file's, the shipped one, or one model. Raises ConfigError."""
    return with_overrides(load(file), target=target, draft=draft)


def subjects(config: Config, named: tuple[str, ...]) -> list[Subject]:
    """The models to measure, all or those that are named. Raises ConfigError if one is not configured."""
    known = {model.name: model for model in config.models}
    for name in named:
        if name not in known:
            raise ConfigError("is not configured", key_path="--models", found=repr(name), allowed=", ".join(known))
    chosen = [known[name] for name in named or known]
    return [Subject(model=model.name, target=model.target, draft=model.draft) for model in chosen]


def service_file(config: Config, directory: Path, plan: Plan, *, on_trial: bool) -> Path:
    """A file for the service under measurement: the configuration's models, lanes, memory and speculation.

    Its clients, keys and telemetry stay out of it; queues hold all that the plan asks at once. ``on_trial``: pairs that
    nobody has approved speculate, too, and one that cannot is refused.
    """
    sections: dict[str, Any] = {name: plain(getattr(config, name)) for name in ("lanes", "memory", "speculation")}
    sections["speculation"]["approvals_file"] = None  # its entries are in the others already
    sections["memory"]["prompt_caches"] = None  # every prompt is asked more than once, and is new each time
    if on_trial:
        sections["lanes"]["interactive"]["speculation"]["mode"] = "require"
    for lane in LANES:
        settings = sections["lanes"][lane]
        settings["max_queue"] = max(settings["max_queue"], *plan.at_once(lane), plan.background)
    models = [plain(model) for model in config.models]
    file = directory / "opta.yaml"
    file.write_bytes(msgspec.json.encode({"models": models, **sections}))  # JSON is YAML, too
    return file
