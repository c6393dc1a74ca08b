"""Values with units as operators write them: durations, sizes, shares of memory, key digests.

Each type knows how to read itself (``parse``), how to write itself (``written``), and its JSON schema. msgspec
calls them through the three hooks at the end.
"""

import math
import re
from typing import Any, ClassVar, Self

_SECONDS_PER: dict[str, float] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# Fifteen digits are exact in a float, and no text of that length overflows one.
_NUMBER = r"\d{1,15}(?:\.\d{1,9})?"
_DURATION = re.compile(rf"(?:{_NUMBER}(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d)")
_BYTES_PER: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(rf"({_NUMBER}) ?([kKMGT]i?B|B|)")
_PERCENT = re.compile(rf"({_NUMBER})%")


class Seconds(float):
    """A duration in seconds, never negative. Written ``250ms``, ``30s``, ``5m``, ``1h30m``, or as bare seconds."""

    allowed: ClassVar[str] = "a duration such as 250ms, 30s, 5m or 1h, or seconds as a number"
    schema: ClassVar[dict[str, Any]] = {
        "description": allowed,
        "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}],
    }

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read one value. Raises ValueError."""
        if isinstance(written, str) and _DURATION.fullmatch(written):
            parts = _DURATION_PART.findall(written)
            return cls(sum(float(number) * _SECONDS_PER[unit] for number, unit in parts))
        if isinstance(written, int | float) and not isinstance(written, bool) and 0 <= written < math.inf:
            return cls(written)
        raise ValueError("not a duration")

    def written(self) -> object:
        """The number of seconds, whole where it is."""
        return int(self) if self.is_integer() else float(self)


class KeepAlive(Seconds):
    """How long something idle is kept, in seconds: 0 lets it go at once, a negative value never does."""

    allowed: ClassVar[str] = "a duration such as 30s, 10m or 1h, seconds as a number, 0 (at once) or -1 (never)"
    schema: ClassVar[dict[str, Any]] = {
        "description": allowed,
        "anyOf": [{"const": -1}, *Seconds.schema["anyOf"]],
    }

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read one value. Raises ValueError."""
        if written in (-1, "-1"):
            return cls(-1)
        return super().parse(written)

    @property
    def forever(self) -> bool:
        """Whether it is never let go."""
        return self < 0


class ByteSize(int):
    """A size in bytes, at least one. Written ``4MiB``, ``8GB``, or as bare bytes."""

    allowed: ClassVar[str] = "a size such as 512KiB, 4MiB or 8GiB, or bytes as a number, at least 1"
    schema: ClassVar[dict[str, Any]] = {
        "description": allowed,
        "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{_SIZE.pattern}$"}],
    }

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read one value. Raises ValueError."""
        if isinstance(written, str) and (match := _SIZE.fullmatch(written)):
            number, unit = match.groups()
            size = cls(float(number) * _BYTES_PER[unit.lower()])
        elif isinstance(written, int) and not isinstance(written, bool):
            size = cls(written)
        else:
            raise ValueError("not a size")
        if size < 1:
            raise ValueError("not a size")
        return size

    def written(self) -> object:
        """The number of bytes."""
        return int(self)


class MemoryAmount:
    """An amount of memory: a share of what the device has (``fraction``, 0 to 1), or ``size_bytes``. One is None."""

    __slots__ = ("fraction", "size_bytes")

    allowed: ClassVar[str] = "a share such as 90%, or a size such as 8GiB"
    schema: ClassVar[dict[str, Any]] = {
        "description": allowed,
        "anyOf": [{"type": "string", "pattern": f"^{_PERCENT.pattern}$"}, *ByteSize.schema["anyOf"]],
    }

    def __init__(self, *, fraction: float | None = None, size_bytes: int | None = None) -> None:
        self.fraction = fraction
        self.size_bytes = size_bytes

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read one value. Raises ValueError."""
        if isinstance(written, str) and (match := _PERCENT.fullmatch(written)):
            percent = float(match[1])
            if not 0 < percent <= 100:
                raise ValueError("not a share between 0% and 100%")
            return cls(fraction=percent / 100)
        try:
            return cls(size_bytes=int(ByteSize.parse(written)))
        except ValueError:
            raise ValueError("not an amount of memory") from None

    def of(self, total_bytes: int) -> int:
        """The amount in bytes on a device that has ``total_bytes``; never more than that."""
        if self.fraction is not None:
            return int(total_bytes * self.fraction)
        return min(self.size_bytes or 0, total_bytes)

    def written(self) -> object:
        """As an operator would write it."""
        return f"{self.fraction * 100:g}%" if self.fraction is not None else self.size_bytes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MemoryAmount):
            return NotImplemented
        return (self.fraction, self.size_bytes) == (other.fraction, other.size_bytes)

    def __hash__(self) -> int:
        return hash((self.fraction, self.size_bytes))

    def __repr__(self) -> str:
        return f"MemoryAmount({self.written()!r})"


class Digest(str):
    """A SHA-256 digest, 64 lower-case hexadecimal digits.

    Never shown in an error: what stands in its place may be the key itself, pasted there by mistake.
    """

    __slots__ = ()

    allowed: ClassVar[str] = "the SHA-256 digest of the key, 64 hexadecimal digits (`opta-router key` makes one)"
    schema: ClassVar[dict[str, Any]] = {
        "description": allowed,
        "type": "string",
        "pattern": "^[0-9a-fA-F]{64}$",
    }

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read one value. Raises ValueError."""
        if isinstance(written, str) and re.fullmatch(r"[0-9a-fA-F]{64}", written):
            return cls(written.lower())
        raise ValueError("not a SHA-256 digest")

    def written(self) -> object:
        """The first digits: enough to tell two keys apart."""
        return f"{self[:8]}…"

    def __repr__(self) -> str:
        return repr(self.written())


class Secret(str):
    """Text that must not reach a log or an answer. It is a plain ``str`` to use, and shows as ``…``."""

    __slots__ = ()

    allowed: ClassVar[str] = "text"
    schema: ClassVar[dict[str, Any]] = {"type": "string"}

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read one value. Raises ValueError."""
        if isinstance(written, str):
            return cls(written)
        raise ValueError("not text")

    def written(self) -> object:
        """Nothing of it."""
        return "…"

    def __repr__(self) -> str:
        return "'…'"


QUANTITIES = (Seconds, KeepAlive, ByteSize, MemoryAmount, Digest, Secret)
SENSITIVE = (Digest, Secret)


def decode_hook(kind: type, written: object) -> object:
    """For ``msgspec.convert``: read a value of one of our types. Raises ValueError, which msgspec locates."""
    if kind not in QUANTITIES:
        raise NotImplementedError(kind)
    return kind.parse(written)


def encode_hook(value: object) -> object:
    """For ``msgspec.to_builtins`` and the JSON encoder."""
    if not isinstance(value, QUANTITIES):
        raise NotImplementedError(type(value))
    return value.written()


def schema_hook(kind: type) -> dict[str, Any]:
    """For ``msgspec.json.schema``."""
    if kind not in QUANTITIES:
        raise NotImplementedError(kind)
    schema: dict[str, Any] = kind.schema
    return schema
