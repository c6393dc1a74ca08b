"""YAML text to plain data, with the line of every key.

Stricter than PyYAML's safe loader: the scalars of YAML 1.2 only (so ``mode: off`` is the word "off", not False, and
no ``.inf``), keys are text and stand once, no tags, and bounds on size, depth and what aliases expand to.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from policies.errors import ConfigError

Step: TypeAlias = str | int
KeyPath: TypeAlias = tuple[Step, ...]

MAX_FILE_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own declaration, emptied


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]{1,18}", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,2})?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), list(_first))

_SCALARS: dict[str, Callable[[str], str | bool | int | float | None]] = {
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:null": lambda _text: None,
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": float,
}


class YamlSource:
    """One parsed file: ``data`` is its plain data, :meth:`line_of` says where a key stands."""

    def __init__(self, file: Path) -> None:
        """Read ``file``. Raises :class:`ConfigError`, with the line where there is one."""
        self.file = file
        self._values = 0
        self._root = self._compose(self._read())
        self.data = self._construct(self._root, ())

    def line_of(self, path: KeyPath) -> int | None:
        """The line (from 1) of the key at ``path``, or of the nearest one around it that the file has."""
        node, line = self._root, None
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            marked, node = found
            line = marked.start_mark.line + 1
        return line

    def _read(self) -> str:
        try:
            with self.file.open("rb") as stream:
                raw = stream.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise self._error(f"cannot be read: {error.strerror or error}") from error
        if len(raw) > MAX_FILE_BYTES:
            raise self._error("the file is too large", allowed=f"at most {MAX_FILE_BYTES} bytes")
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise self._error("is not UTF-8 text", line=line, found=f"byte 0x{raw[error.start]:02x}") from None

    def _compose(self, text: str) -> yaml.Node:
        try:
            node: yaml.Node | None = _Loader(text).get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = "is not valid YAML: " + " ".join(filter(None, (error.context, error.problem)))
            if "\\t" in (error.problem or ""):
                problem += " (indent with spaces, not with tabs)"
            raise self._error(problem, line=None if mark is None else mark.line + 1) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise self._error(f"is not valid YAML: {error.reason}", line=line) from None
        except RecursionError:
            raise self._error("is nested too deeply", allowed=f"at most {MAX_DEPTH} levels") from None
        if node is None:
            # An editor that truncates before it writes must not be taken for a wish for the defaults.
            raise self._error("the file is empty", allowed="at least {}")
        return node

    def _construct(self, node: yaml.Node, path: KeyPath) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._at(node, path, "too many values", allowed=f"at most {MAX_VALUES}, aliases expanded")
        if len(path) > MAX_DEPTH:
            raise self._at(node, path[:3], "nested too deeply", allowed=f"at most {MAX_DEPTH} levels")
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._construct_mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self._construct(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            try:
                return _SCALARS[node.tag](node.value)
            except ValueError:
                pass
        raise self._at(node, path, "tags are not supported", found=node.tag)

    def _construct_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._construct(key_node, path)
            if not isinstance(key, str):
                raise self._at(key_node, path, "a key is not text", found=shown(key), allowed="quoted text")
            if key in mapping:
                raise self._at(key_node, (*path, key), "the key stands twice")
            mapping[key] = self._construct(value_node, (*path, key))
        return mapping

    def _at(self, node: yaml.Node, path: KeyPath, problem: str, **parts: str) -> ConfigError:
        return self._error(problem, line=node.start_mark.line + 1, key_path=written_path(path), **parts)

    def _error(self, problem: str, **parts: Any) -> ConfigError:
        return ConfigError(problem, file=self.file, **parts)


def _child(node: yaml.Node, step: Step) -> tuple[yaml.Node, yaml.Node] | None:
    """The node that marks the step's place, and its value."""
    if isinstance(node, yaml.MappingNode) and isinstance(step, str):
        return next(((key, value) for key, value in node.value if key.value == step), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def written_path(path: Sequence[Step]) -> str | None:
    """``("clients", 2, "name")`` as ``clients[2].name``; None for the whole file."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if _PLAIN_KEY.fullmatch(step) else shown(step)
            text += f".{key}" if text else key
    return text or None


def shown(value: object) -> str:
    """A value as an error shows it: one short line of ASCII."""
    if isinstance(value, dict | list):
        kind = "a mapping" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}"
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
