"""From the configuration in force and a newly read one to the one that holds from now on. Pure.

A new configuration is taken as a whole or not at all. What was fixed at the start keeps its old value in it, is named
as waiting for a restart, and must go together with the rest: a preset of a model that is not there yet is an error.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from policies.consistency import problems
from policies.errors import ConfigError, RestartRequired
from policies.schema import Config, LaneName, plain
from policies.validation import decode
from policies.yaml_source import KeyPath, YamlSource, written_path

FIXED: Final[tuple[KeyPath, ...]] = (
    ("server",),
    ("models",),
    ("lanes", "interactive", "speculation", "max_draft_tokens"),
    ("lanes", "interactive", "speculation", "prompt_lookup"),
    ("lanes", "throughput", "max_active"),
    ("memory",),
    ("telemetry",),
)
"""What sockets, exporters, and engines that load a model read once."""

LANE_SETTINGS: Final = ("weight", "max_active", "max_queue", "queue_timeout")
"""The settings of one lane that can be changed without a file."""


class Reload(msgspec.Struct, frozen=True):
    """The configuration that holds from now on, and the key paths that differ from the one before.

    ``changed`` holds in ``config``; ``needs_restart`` does not, yet.
    """

    config: Config
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


def reload(in_force: Config, loaded: Config, source: YamlSource | None = None) -> Reload:
    """What becomes of ``in_force`` when ``loaded`` is read; ``source`` knows the lines of the file, for errors.

    Raises :class:`ConfigError` if ``loaded`` does not go together with what has to wait for a restart.
    """
    differing = tuple(_differing(in_force, loaded))
    waiting = tuple(_written(path) for path in differing if _is_fixed(path))
    config = loaded
    for path in FIXED:
        config = _with(config, path, _at(in_force, path))
    first = next(problems(config), None)
    if first is not None:
        why = f"{first.problem} (waiting for a restart: {', '.join(waiting)})" if waiting else first.problem
        raise msgspec.structs.replace(first, problem=why).error(source)
    return Reload(config, tuple(_written(path) for path in differing if not _is_fixed(path)), waiting)


def with_lane_settings(in_force: Config, lane: LaneName, settings: Mapping[str, Any]) -> Reload:
    """``in_force`` with other values for some of a lane's :data:`LANE_SETTINGS`, written as in the file.

    Raises :class:`ConfigError` for a name or value that the file could not have, and :class:`RestartRequired`.
    """
    for name in settings:
        if name not in LANE_SETTINGS:
            near = difflib.get_close_matches(name, LANE_SETTINGS, n=1)
            raise ConfigError(
                "cannot be set here",
                key_path=written_path(("lanes", lane, name)),
                allowed=", ".join(LANE_SETTINGS),
                suggestion=near[0] if near else None,
            )
    written = {**plain(_at(in_force, ("lanes", lane))), **settings}
    decoded = decode({"lanes": {lane: written}}, Config)
    path = ("lanes", lane)
    result = reload(in_force, _with(in_force, path, _at(decoded, path)))
    if result.needs_restart:
        raise RestartRequired("changes only in the file, with a restart", key_path=result.needs_restart[0])
    return result


def _differing(old: object, new: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """The smallest parts that differ; a list whose entries are not the same ones is one part."""
    if old == new:
        return
    if isinstance(old, msgspec.Struct) and isinstance(new, type(old)):
        for name in old.__struct_fields__:
            yield from _differing(getattr(old, name), getattr(new, name), (*path, name))
    elif isinstance(old, tuple) and isinstance(new, tuple) and _same_entries(old, new):
        for index, (before, now) in enumerate(zip(old, new, strict=True)):
            yield from _differing(before, now, (*path, index))
    else:
        yield path


def _same_entries(old: tuple[object, ...], new: tuple[object, ...]) -> bool:
    structs = all(isinstance(entry, msgspec.Struct) for entry in (*old, *new))
    return structs and [getattr(e, "name", None) for e in old] == [getattr(e, "name", None) for e in new]


def _is_fixed(path: KeyPath) -> bool:
    return any(path[: len(fixed)] == fixed for fixed in FIXED)


def _at(config: Any, path: KeyPath) -> Any:
    for name in path:
        config = getattr(config, str(name))
    return config


def _with(config: Any, path: KeyPath, value: object) -> Any:
    name, rest = str(path[0]), path[1:]
    return msgspec.structs.replace(config, **{name: _with(getattr(config, name), rest, value) if rest else value})


def _written(path: KeyPath) -> str:
    return written_path(path) or ""
