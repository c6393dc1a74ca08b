"""What is resident on the device: a model with one engine for each lane."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from lanes import wire
from lanes.engines.base import Engine
from lanes.engines.scripted import ScriptedEngine, ScriptedTokenizer, parse_script
from lanes.errors import ModelLoadFailed

SCRIPTED = "scripted:"
CALIBRATION_TOKENS = 32

Memory = Callable[[], tuple[int, int]]
"""Active and peak device memory, in bytes."""


class Resident:
    """A loaded model. Both engines work on the same target weights."""

    def __init__(
        self,
        spec: wire.ModelSpec,
        info: wire.ModelInfo,
        tokenizer: Any,
        engines: Mapping[wire.Lane, Engine],
        memory: Memory | None = None,
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self.engines = engines
        self.memory = memory
        self.last_used_s = time.monotonic()
        self.last_step: dict[wire.Lane, int] = dict.fromkeys(engines, -1)
        self._keep_alive_s = spec.keep_alive_s

    def expired(self, now_s: float) -> bool:
        """True if an idle model has outlived its ``keep_alive``; a negative one means for ever."""
        return 0 <= self._keep_alive_s <= now_s - self.last_used_s

    def close(self) -> None:
        """Give the memory back."""
        for engine in self.engines.values():
            engine.close()
        self.engines = {}


def load_resident(spec: wire.ModelSpec, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> Resident:
    """Load a model and make its engines.

    Raises:
        ModelLoadFailed: it cannot be loaded; nothing of it stays in memory.
    """
    if spec.target.startswith(SCRIPTED):
        return _scripted(spec, lanes)
    return _pair(spec, lanes)


def _pair(spec: wire.ModelSpec, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> Resident:
    # Here, because importing mlx-lm takes seconds that a host of scripted models need not spend.
    import mlx.core as mx  # noqa: PLC0415

    from lanes.engines.speculative import SpeculativeEngine  # noqa: PLC0415
    from lanes.engines.throughput import ThroughputEngine  # noqa: PLC0415
    from lanes.host.models import load_pair  # noqa: PLC0415

    _prepare_device()
    pair = load_pair(spec)
    usable = pair.info.same_vocabulary and pair.info.cache_trimmable
    interactive = SpeculativeEngine(
        pair.target,
        pair.draft if usable else None,
        pair.eos,
        lanes["interactive"].max_draft_tokens,
    )
    prompt = pair.tokenizer.encode("def calibrate(self, rounds):\n    return [self.round() for _ in range(rounds)]\n")
    interactive.calibrate(tuple(prompt[:CALIBRATION_TOKENS]))
    batches = lanes["throughput"]
    throughput = ThroughputEngine(
        pair.target, pair.eos, batches.max_active, batches.max_step_s if batches.max_step_s is not None else 0.25
    )
    mx.clear_cache()
    return Resident(
        spec,
        pair.info,
        pair.tokenizer,
        {"interactive": interactive, "throughput": throughput},
        lambda: (mx.get_active_memory(), mx.get_peak_memory()),
    )


@functools.cache
def _prepare_device() -> None:
    """Once, on the device thread, before anything is loaded on it."""
    import mlx.core as mx  # noqa: PLC0415
    from vllm_mlx.mlx_streams import bind_generation_streams  # noqa: PLC0415

    if mx.default_device() == mx.Device(mx.cpu):
        from lanes.engines import cpu_attention  # noqa: PLC0415

        cpu_attention.install()
    # Both lanes on one stream of this thread. The default is whichever thread imported mlx_lm first.
    bind_generation_streams(["mlx_lm.generate"])
    # mlx-lm's batch generator wires the model's memory on Metal. Together with a second model and cache eviction that
    # has panicked whole machines (https://github.com/ml-explore/mlx/issues/3186).
    mx.set_wired_limit = lambda limit: 0 * limit


def _scripted(spec: wire.ModelSpec, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> Resident:
    try:
        script = parse_script(spec.target.removeprefix(SCRIPTED))
    except ValueError as exc:
        raise ModelLoadFailed(f"{spec.target}: {exc}") from exc
    tokenizer = ScriptedTokenizer()
    info = wire.ModelInfo(
        name=spec.name,
        target=spec.target,
        draft=spec.draft,
        context_tokens=1 << 20,
        vocab_size=tokenizer.vocab_size,
        target_bytes=0,
        draft_bytes=0,
        load_s=0.0,
    )
    return Resident(spec, info, tokenizer, {lane: ScriptedEngine(**script) for lane in lanes})
