"""Plain data to a struct, and msgspec's complaint, if it has one, as a problem that an operator can act on."""

import difflib
import re
import types
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_type_hints
from typing import get_origin as typing_origin

import msgspec

from policies.errors import ConfigError
from policies.quantities import QUANTITIES, SENSITIVE, decode_hook
from policies.yaml_source import KeyPath, Step, YamlSource, shown, written_path

S = TypeVar("S", bound=msgspec.Struct)
_Type: TypeAlias = Any
_LOCATED = re.compile(r"(?P<message>.*) - at `(?:key in )?\$(?P<path>.*)`", re.DOTALL)
_STEP = re.compile(r"\.(?P<key>[^.\[\]]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")


class Problem(msgspec.Struct, frozen=True):
    """What is wrong at ``path``. Absent parts are not known, or must not be shown."""

    path: KeyPath
    problem: str
    found: str | None = None
    allowed: str | None = None
    suggestion: str | None = None

    def error(self, source: YamlSource | None) -> ConfigError:
        """As the error that is raised for it."""
        return ConfigError(
            self.problem,
            file=source.file if source else None,
            line=source.line_of(self.path) if source else None,
            key_path=written_path(self.path),
            found=self.found,
            allowed=self.allowed,
            suggestion=self.suggestion,
        )


def decode(data: object, kind: type[S], source: YamlSource | None = None) -> S:
    """``data`` as a ``kind``. Raises :class:`ConfigError` naming the key path, and the line if ``source`` knows it."""
    try:
        return msgspec.convert(data, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise _explained(str(error), data, kind).error(source) from None


def _explained(message: str, data: object, kind: _Type) -> Problem:
    located = _LOCATED.fullmatch(message)
    path, value, wanted = _walk(located["path"] if located else "", data, kind)
    if located:
        message = located["message"]
    if _is_struct(wanted) and isinstance(value, dict):
        return _wrong_keys(path, value, wanted) or Problem(path, message)
    plain_type = _plain(wanted)
    found = "(not shown)" if plain_type in SENSITIVE else shown(value)
    return Problem(path, _problem(message, wanted), found, _allowed(wanted))


def _walk(msgspec_path: str, data: Any, kind: _Type) -> tuple[KeyPath, Any, _Type]:
    """Follow msgspec's path through data and types. For an entry of a dict it says ``[...]``: find which one."""
    path: list[Step] = []
    for match in _STEP.finditer(msgspec_path):
        plain_type = _plain(kind)
        if match["key"] is not None:
            step: Any = match["key"]
            kind = get_type_hints(plain_type, include_extras=True)[step]
        elif match["index"] is not None:
            step = int(match["index"])
            kind = get_args(plain_type)[0]
        else:
            kind = get_args(plain_type)[1]
            step = str(next(key for key, value in data.items() if not _fits(value, kind)))
        path.append(step)
        data = data[step]
    return tuple(path), data, kind


def _origin(kind: _Type) -> _Type:
    """``typing.get_origin``, whose declared result does not allow for ``Literal``."""
    return typing_origin(kind)


def _fits(value: object, kind: _Type) -> bool:
    try:
        msgspec.convert(value, kind, dec_hook=decode_hook)
    except msgspec.ValidationError:
        return False
    return True


def _plain(kind: _Type) -> _Type:
    """The type without ``Annotated`` and ``| None``."""
    while True:
        if hasattr(kind, "__metadata__"):
            kind = kind.__origin__
        elif _origin(kind) in (Union, types.UnionType):
            kind = next(member for member in get_args(kind) if member is not type(None))
        else:
            return kind


def _is_struct(kind: _Type) -> bool:
    plain_type = _plain(kind)
    return isinstance(plain_type, type) and issubclass(plain_type, msgspec.Struct)


def _wrong_keys(path: KeyPath, value: dict[str, Any], kind: _Type) -> Problem | None:
    fields = msgspec.structs.fields(_plain(kind))
    names = [field.name for field in fields]
    for key in value:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            suggestion = near[0] if near else None
            return Problem((*path, key), "unknown key", allowed=", ".join(names), suggestion=suggestion)
    for field in fields:
        if field.required and field.name not in value:
            return Problem((*path, field.name), "is missing", allowed=_allowed(field.type))
    return None


def _problem(message: str, kind: _Type) -> str:
    if _plain(kind) in QUANTITIES:
        return f"is {message}"
    if _origin(_plain(kind)) is Literal:
        return "is not one of the allowed values"
    return "has a wrong type or value"


def _allowed(kind: _Type) -> str:
    optional = " or null" if _fits(None, kind) else ""
    bounds = _bounds(kind)
    plain_type = _plain(kind)
    if plain_type in QUANTITIES:
        return f"{plain_type.allowed}{optional}"
    if _origin(plain_type) is Literal:
        return ", ".join(map(str, get_args(plain_type))) + optional
    if _is_struct(plain_type):
        keys = ", ".join(field.name for field in msgspec.structs.fields(plain_type))
        return f"a mapping with the keys {keys}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    shapes = {tuple: "a list", dict: "a mapping"}
    word = words.get(plain_type) or shapes.get(_origin(plain_type)) or "another type"
    return f"{word}{bounds}{optional}"


def _bounds(kind: _Type) -> str:
    """The bounds in a type's ``Meta``, inside an optional too, as words."""
    parts: list[str] = []
    for candidate in (kind, *(get_args(kind) if _origin(kind) in (Union, types.UnionType) else ())):
        for meta in getattr(candidate, "__metadata__", ()):
            signs = ((">", meta.gt), (">=", meta.ge), ("<", meta.lt), ("<=", meta.le), ("matching", meta.pattern))
            parts += [f"{sign} {value}" for sign, value in signs if value is not None]
            if meta.min_length is not None:
                parts.append("not empty")
            if meta.max_length is not None:
                parts.append(f"at most {meta.max_length} long")
    return f" {', '.join(parts)}" if parts else ""
