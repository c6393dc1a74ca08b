"""JSON bodies to structs, with errors that name the parameter, what was found there and what is allowed.

msgspec decodes and checks; when it refuses, its one-line complaint is turned into ours. Strings are never repeated in
an error: they may be a prompt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from opta_router.errors import InvalidCode, InvalidRequest

T = TypeVar("T")

_AT = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


class Neutral(msgspec.Struct, frozen=True):
    """A parameter that is known and not supported: the values that change nothing, which are accepted."""

    values: tuple[object, ...] = ()

    def accepts(self, value: object) -> bool:
        """Null always is; True and 1 are not the same here."""
        return value is None or any(type(value) is type(same) and value == same for same in self.values)


def fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The top level of a body, its values undecoded.

    Raises:
        InvalidRequest: not JSON, not an object, or nested too deeply.
    """
    return _guarded(body, dict[str, msgspec.Raw])


def decode(body: bytes, kind: type[T]) -> T:
    """The whole body as a ``kind``; what the struct does not declare is skipped, see :func:`check_names`.

    Raises:
        InvalidRequest: naming the parameter.
    """
    return _guarded(body, kind)


def check_names(
    given: Mapping[str, msgspec.Raw], known: Collection[str], unsupported: Mapping[str, Neutral], ours: Collection[str]
) -> None:
    """Refuse what we do not know, and what we do not support unless its value changes nothing.

    ``ours`` are further names that the configuration gives a meaning.

    Raises:
        InvalidRequest: naming the parameter.
    """
    for name, raw in given.items():
        if name in known or name in ours:
            continue
        neutral = unsupported.get(name)
        if neutral is None:
            near = difflib.get_close_matches(name[:60], known, n=1)
            suggestion = f"; did you mean {near[0]}?" if near else ""
            printable = ascii(name[:60])[1:-1]
            raise InvalidRequest("unknown_parameter", f"unknown parameter: {printable}{suggestion}", param=printable)
        if not neutral.accepts(_guarded(raw, object)):
            neutrals = [msgspec.json.encode(value).decode() for value in neutral.values] or ["null"]
            message = f"{name} is not supported; leave it out, or send {' or '.join(neutrals)}"
            raise InvalidRequest("unsupported_parameter", message, param=name)


def shown(value: object) -> str:
    """A value as an error shows it: the kind of it, and numbers themselves."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            text = str(value)
            return text if len(text) <= 40 else f"{text[:40]}…"
        case str():
            return f"a string of {len(value)} characters"
        case list():
            return f"an array of {len(value)}"
        case _:
            return "an object"


def _guarded(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _located(str(error), body) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error).removeprefix("JSON is ")
        raise InvalidRequest("invalid_json", f"the body is not valid JSON: {reason}") from None
    except RecursionError:
        raise _too_deep() from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest("invalid_json", "the body is nested too deeply")


def _located(complaint: str, body: bytes | msgspec.Raw) -> InvalidRequest:
    match = _AT.fullmatch(complaint)
    what, path = (match["what"], match["path"] or "") if match else ("", "")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        param = f"{path}.{missing[1]}".lstrip(".")
        return InvalidRequest("missing_required_parameter", f"{param} is missing", param=param)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        param = ascii(f"{path}.{unknown[1][:60]}".lstrip("."))[1:-1]
        return InvalidRequest("unknown_parameter", f"unknown parameter: {param}", param=param)
    if match and match["key"]:
        param = path.lstrip(".")
        return InvalidRequest("invalid_value", f"{param}: a key is not {_wanted(what)}", param=param)
    found, where = _found(path, body)
    code: InvalidCode = "invalid_type" if ", got " in what else "invalid_value"
    message = f"{where or 'the body'}: found {found}; allowed is {_wanted(what)}"
    return InvalidRequest(code, message, param=where or None)


def _wanted(what: str) -> str:
    """msgspec's ``Expected `int | null` >= 1``, in words."""
    expected = re.fullmatch(r"Expected `([^`]*)`(.*?)(?:, got `.*`)?", what, re.DOTALL)
    if expected is None:
        return "another value" if "range" not in what else "a number of usual size"
    kinds = [_TYPES.get(kind.strip(), kind.strip()) for kind in expected[1].split("|")]
    return " or ".join(kinds) + expected[2]


def _found(path: str, body: bytes | msgspec.Raw) -> tuple[str, str]:
    """What stands at a path of msgspec's, and the path itself, as far as it can be followed."""
    where, several, _ = path.partition("[...]")  # msgspec does not say which entry of an object
    try:
        value: Any = msgspec.json.decode(body)
        for name, index in _STEP.findall(where):
            value = value[name] if name else value[int(index)]
    except (msgspec.DecodeError, LookupError, TypeError):
        return "another value", where.lstrip(".")
    except RecursionError:  # the typed decoder gave up on the body's outside, before it got this deep
        raise _too_deep() from None
    return ("an entry with another value" if several else shown(value)), where.lstrip(".")
