"""The pairs on the device: looked at, on their way, resident. Everything here is called on the device thread.

What is to be loaded, and what must go for it, is decided in the router (:mod:`lanes.residency`); here it is done, in
pieces, so that resident models go on being served meanwhile.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Generator, Mapping
from typing import Any, Final

import msgspec

from lanes import wire
from lanes.engines.prompt_caches import PromptMemory
from lanes.errors import ModelLoadFailed
from lanes.host.residents import Examination, Resident, facts_of, loading

log = logging.getLogger(__name__)

PIECE_S: Final = 0.02
"""How long a load may hold the device while others have work; one array, or one calibrated round, always gets done."""

UNDISTURBED_PIECE_S: Final = 0.2
PROGRESS_S: Final = 0.25
"""How often progress is said."""


class Prepare(msgspec.Struct, frozen=True):
    """Look at a pair whose files have been examined."""

    examined: Examination

    @property
    def model(self) -> str:
        """Which."""
        return self.examined.spec.name


class Load(msgspec.Struct, frozen=True):
    """Make it resident."""

    examined: Examination

    @property
    def model(self) -> str:
        """Which."""
        return self.examined.spec.name


class Unload(msgspec.Struct, frozen=True):
    """Give its memory back, or its load up."""

    model: str


class LimitPromptCaches(msgspec.Struct, frozen=True):
    """What all prompt caches together may take."""

    max_bytes: int


Order = Prepare | Load | Unload


class Loaded(msgspec.Struct, frozen=True):
    """A pair is resident; its tokenizer outlives its weights."""

    info: wire.ModelInfo
    tokenizer: Any


Report = Loaded | wire.ModelPrepared | wire.ModelProgress | wire.ModelFailed | wire.ModelUnloaded


class Loader:
    """Obeys orders about pairs.

    Args:
        lanes: the lanes and their settings.
    """

    def __init__(self, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> None:
        self._lanes = lanes
        self._loads: dict[str, Generator[wire.ModelProgress, None, Resident]] = {}
        self._said_s = 0.0
        self.prompt_memory = PromptMemory()
        self.residents: dict[str, Resident] = {}

    @property
    def loading(self) -> str:
        """The pair that :meth:`advance` would work on; empty if none."""
        return next(iter(self._loads), "")

    @property
    def busy(self) -> bool:
        """Whether :meth:`advance` would do something."""
        return bool(self._loads)

    def memory(self) -> tuple[int, int]:
        """Active and peak device memory, in bytes."""
        mx = sys.modules.get("mlx.core")  # absent where only scripted models are
        return (0, 0) if mx is None else (mx.get_active_memory(), mx.get_peak_memory())

    def obey(self, order: Order) -> list[Report]:
        """Carry an order out, or begin to."""
        match order:
            case Prepare(examined):
                return [self._prepared(examined)]
            case Load(examined):
                name = examined.spec.name
                if name not in self.residents and name not in self._loads:
                    self._loads[name] = loading(examined, self._lanes, self.prompt_memory)
            case Unload(name):
                self._unload(name)
                return [wire.ModelUnloaded(name)]
        return []

    def limit_prompt_caches(self, max_bytes: int) -> None:
        """Give back what is beyond ``max_bytes``: somebody else is to have it."""
        if self.prompt_memory.resize(max_bytes):
            _free()

    def advance(self, others_wait: bool) -> list[Report]:
        """Do the next pieces of the oldest load."""
        name, load = next(iter(self._loads.items()))
        until_s = time.perf_counter() + (PIECE_S if others_wait else UNDISTURBED_PIECE_S)
        try:
            progress = next(load)
            while time.perf_counter() < until_s:
                progress = next(load)
        except StopIteration as end:
            del self._loads[name]
            resident: Resident = end.value
            self.residents[name] = resident
            return [Loaded(resident.info, resident.tokenizer)]
        except Exception as exc:
            del self._loads[name]
            failure = _failure(name, exc)
            del load, exc  # with them everything that was loaded so far
            _free()
            return [failure]
        if until_s < self._said_s + PROGRESS_S:
            return []
        self._said_s = until_s
        return [progress]

    def _prepared(self, examined: Examination) -> Report:
        name = examined.spec.name
        try:
            return wire.ModelPrepared(name, facts_of(examined, self._lanes))
        except Exception as exc:  # whoever waits for this pair must hear of it, whatever went wrong
            return _failure(name, exc)
        finally:
            _forget_positions()

    def _unload(self, name: str) -> None:
        load = self._loads.pop(name, None)
        if load is not None:
            load.close()
        resident = self.residents.pop(name, None)
        if resident is not None:
            resident.close()
        del load, resident
        _free()


def _failure(name: str, exc: Exception) -> wire.ModelFailed:
    if isinstance(exc, ModelLoadFailed):
        return wire.ModelFailed(name, str(exc))
    log.error("model %s could not be made resident", name, exc_info=exc)
    return wire.ModelFailed(name, f"{type(exc).__name__}: {exc}")


def _free() -> None:
    """Give the device its memory back: models and schedulers refer to themselves, so nothing goes by itself."""
    gc.collect()
    _forget_positions()
    mx = sys.modules.get("mlx.core")
    if mx is not None:
        mx.clear_cache()


def _forget_positions() -> None:
    """Models ran outside of an engine's steps, which do this for themselves."""
    rope = sys.modules.get("lanes.engines.cpu_rope")
    if rope is not None:
        rope.forget()
