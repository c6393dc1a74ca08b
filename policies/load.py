"""A file to a :class:`~policies.schema.Config`: whole and consistent, or a :class:`ConfigError`."""

import re
from pathlib import Path

import msgspec

from policies.consistency import problems
from policies.errors import ConfigError
from policies.schema import ApprovedPair, Config, ModelConfig
from policies.speculation import read_matrix
from policies.validation import Problem, decode
from policies.yaml_source import YamlSource, shown

DEFAULT_FILE = Path(__file__).with_name("default.yaml")
# Sections for which "left out" means "as shipped"; for every other one the schema's defaults are what is shipped.
_SHIPPED_SECTIONS = ("models", "hints")


class Loaded(msgspec.Struct, frozen=True):
    """A configuration, and the file that it is from; ``source`` says what stands on which lines."""

    config: Config
    file: Path
    source: YamlSource


def load(path: Path | None = None) -> Config:
    """The configuration in ``path``, or the shipped one. Raises :class:`ConfigError`."""
    return load_with_source(path).config


def load_with_source(path: Path | None = None) -> Loaded:
    """Like :func:`load`, with where everything stands."""
    source = YamlSource(path or DEFAULT_FILE)
    if not isinstance(source.data, dict):
        allowed = ", ".join(field.name for field in msgspec.structs.fields(Config))
        raise ConfigError(
            "is not a mapping", file=source.file, line=1, found=shown(source.data), allowed=f"the keys {allowed}"
        )
    data = dict(source.data)
    if path is not None:
        shipped = YamlSource(DEFAULT_FILE).data
        data = {**{section: shipped[section] for section in _SHIPPED_SECTIONS}, **data}
    config = decode(data, Config, source)
    _must_be_consistent(config, source)
    config = _with_approvals(config, source)
    return Loaded(config, source.file, source)


def _with_approvals(config: Config, source: YamlSource) -> Config:
    """With the entries of the approvals' file behind those of the configuration itself."""
    own = config.speculation
    if own.approvals_file is None:
        return config
    found = read_matrix(source.file.parent / own.approvals_file)
    speculation = msgspec.structs.replace(
        own, approved=(*own.approved, *found.approved), denied=(*own.denied, *found.denied)
    )
    config = msgspec.structs.replace(config, speculation=speculation)
    _must_be_consistent(config, None)
    return config


def with_overrides(
    config: Config,
    *,
    target: str | None = None,
    draft: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> Config:
    """``config`` with what the command line says. Raises :class:`ConfigError`.

    ``target`` replaces all models by one, preloaded, named like the last part of the target and known as ``auto``;
    presets must then name it. Naming a ``draft`` by hand approves the pair; the deny-list and all checks still hold.
    """
    if draft is not None and target is None:
        raise ConfigError("a draft needs its target", key_path="--draft", allowed="--draft together with --model")
    if target is not None:
        config = _with_model(config, target, draft)
    changes: dict[str, object] = {"host": host, "port": port}
    changes = {name: value for name, value in changes.items() if value is not None}
    server = msgspec.structs.replace(config.server, **changes)
    config = msgspec.structs.replace(config, server=server)
    _check_types(config)
    _must_be_consistent(config, None)
    return config


def _with_model(config: Config, target: str, draft: str | None) -> Config:
    last_part = target.rstrip("/").rpartition("/")[2].removeprefix("embedded:")
    name = re.sub(r"[^A-Za-z0-9._:@+-]+", "-", last_part).lstrip("._:@+-") or "model"
    aliases = () if name == "auto" else ("auto",)
    model = ModelConfig(name=name, target=target, draft=draft, aliases=aliases, preload=True)
    speculation = config.speculation
    if draft is not None:
        pair = ApprovedPair(target=target, draft=draft, evidence="named on the command line")
        speculation = msgspec.structs.replace(speculation, approved=(pair, *speculation.approved))
    return msgspec.structs.replace(config, models=(model,), speculation=speculation)


def _check_types(config: Config) -> None:
    """Structs made in code are not validated by msgspec; the overridden values come from a command line."""
    server = {"host": config.server.host, "port": config.server.port}
    models = [{"name": model.name, "target": model.target, "draft": model.draft} for model in config.models]
    decode({"server": server, "models": models}, Config)


def _must_be_consistent(config: Config, source: YamlSource | None) -> None:
    first: Problem | None = next(problems(config), None)
    if first is not None:
        raise first.error(source)
