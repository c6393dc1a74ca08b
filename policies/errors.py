"""What can be wrong with a configuration, or with what a request names. Each class has a stable ``code``."""

from collections.abc import Sequence
from pathlib import Path


class PolicyError(Exception):
    """Base of all errors of this package."""

    code = "policy_error"


class ConfigError(PolicyError):
    """The operator's mistake: the configuration cannot be used, and nothing of it has been.

    ``str()`` is one line: ``file:line: key.path: problem; found: …; allowed: …``. Every part that is not known
    is None and left out; ``file`` is None for what did not come from a file.
    """

    code = "invalid_config"

    def __init__(
        self,
        problem: str,
        *,
        file: Path | None = None,
        line: int | None = None,
        key_path: str | None = None,
        found: str | None = None,
        allowed: str | None = None,
        suggestion: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.line = line
        self.key_path = key_path
        self.found = found
        self.allowed = allowed
        self.suggestion = suggestion
        super().__init__(self._one_line())

    def _one_line(self) -> str:
        where = None if self.file is None else str(self.file)
        if where is not None and self.line is not None:
            where = f"{where}:{self.line}"
        text = ": ".join(part for part in (where, self.key_path, self.problem) if part)
        if self.found is not None:
            text += f"; found: {self.found}"
        if self.allowed is not None:
            text += f"; allowed: {self.allowed}"
        if self.suggestion is not None:
            text += f" (did you mean {self.suggestion!r}?)"
        return text


class SpeculationUnsupported(ConfigError):
    """The configuration insists on speculation for a pair that cannot, or may not, speculate.

    ``reason`` is the :class:`policies.speculation.SpecReason` that stands in the way.
    """

    code = "speculation_unsupported"

    def __init__(self, problem: str, *, reason: str, key_path: str) -> None:
        self.reason = reason
        super().__init__(problem, key_path=key_path)


class RestartRequired(ConfigError):
    """The setting is fixed while the router runs."""

    code = "restart_required"


class UnknownName(PolicyError):
    """The caller named something that is not configured. ``known`` lists what is, in a stable order."""

    kind = "name"

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        choices = ", ".join(self.known) if self.known else "none"
        # !a: the name is a caller's and the message may end up in a log or a header.
        super().__init__(f"{self.kind} {name[:100]!a} is not configured; configured: {choices}")


class UnknownModel(UnknownName):
    """No model, alias or preset has the name in the request's ``model``."""

    code = "model_not_found"
    kind = "model"


class UnknownPreset(UnknownName):
    """No preset has the name in ``X-Opta-Preset``."""

    code = "preset_not_found"
    kind = "preset"
