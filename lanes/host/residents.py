"""What is resident on the device: a model with one engine for each lane."""

from __future__ import annotations

import functools
import gc
import logging
import time
from collections.abc import Generator, Mapping
from typing import Any

import msgspec

from lanes import wire
from lanes.engines.base import Engine, SequenceSpec, advance
from lanes.engines.prompt_caches import LEAST_TOKENS, PromptCaches, PromptMemory
from lanes.engines.scripted import Script, ScriptedEngine, ScriptedTokenizer, parse_script
from lanes.errors import ModelLoadFailed
from lanes.host.examine import Examined
from lanes.host.examine import examine as examine_files
from lanes.host.probe import memory_bytes, speculation_paths
from lanes.host.sources import OnBytes

log = logging.getLogger(__name__)

SCRIPTED_CONTEXT_TOKENS = 1 << 20
TRIAL_TOKENS = 6
"""So many that the engine learns what a step of a small batch takes: its first ones do not count."""


class Resident:
    """A loaded model. Both engines work on the same target weights."""

    def __init__(
        self,
        info: wire.ModelInfo,
        tokenizer: Any,
        engines: Mapping[wire.Lane, Engine],
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self.engines = engines
        self.last_step: dict[wire.Lane, int] = dict.fromkeys(engines, -1)

    def close(self) -> None:
        """Give the memory back."""
        for engine in self.engines.values():
            engine.close()
        self.engines = {}


class Scripted(msgspec.Struct, frozen=True):
    """A model of the scripted engine, which has no files to look at."""

    spec: wire.ModelSpec
    script: Script
    tokenizer: ScriptedTokenizer = ScriptedTokenizer()


Examination = Examined | Scripted
"""What is known of a pair before the device has seen it."""


def examine(spec: wire.ModelSpec, on_bytes: OnBytes) -> Examination:
    """Find a pair's files and look at them; blocks, on any thread.

    Raises:
        ModelLoadFailed: it cannot be loaded.
    """
    if not spec.scripted:
        return examine_files(spec, on_bytes)
    try:
        return Scripted(spec, parse_script(spec.target.removeprefix(wire.SCRIPTED)))
    except ValueError as exc:
        raise ModelLoadFailed(f"{spec.target}: {exc}") from exc


def import_engines() -> None:
    """What the first model to be looked at and loaded would have to wait for: seconds. On any thread."""
    import vllm_mlx.mlx_streams  # noqa: PLC0415, F401

    from lanes.engines import cpu_activations, cpu_attention, cpu_rope, speculative, throughput  # noqa: PLC0415, F401
    from lanes.host import models, preflight  # noqa: PLC0415, F401


def facts_of(examined: Examination, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> wire.PairFacts:
    """What the pair needs; on the device thread.

    Raises:
        ModelLoadFailed: it cannot be loaded.
    """
    if isinstance(examined, Scripted):
        paths = tuple(wire.CallPath(lane, "scripted") for lane in lanes)
        return wire.PairFacts(SCRIPTED_CONTEXT_TOKENS, 0, 0, 0, 0, 0, paths=paths)
    from lanes.host import preflight  # noqa: PLC0415

    _prepare_device()
    return preflight.facts_of(examined, lanes)


def loading(
    examined: Examination, lanes: Mapping[wire.Lane, wire.LaneSpec], memory: PromptMemory
) -> Generator[wire.ModelProgress, None, Resident]:
    """Load a pair and make its engines, which share their prompt caches, in bounded pieces; on the device thread.

    Raises:
        ModelLoadFailed: it cannot be loaded; nothing of it stays in memory.
    """
    if isinstance(examined, Scripted):
        return _scripted(examined, lanes)
    return (yield from _pair(examined, lanes, memory.of(examined.spec.name)))


def _pair(
    examined: Examined, lanes: Mapping[wire.Lane, wire.LaneSpec], prompt_caches: PromptCaches
) -> Generator[wire.ModelProgress, None, Resident]:
    # Here, because importing mlx-lm takes seconds that a host of scripted models need not spend.
    import mlx.core as mx  # noqa: PLC0415

    from lanes.engines import cpu_rope  # noqa: PLC0415
    from lanes.engines.speculative import SpeculativeEngine  # noqa: PLC0415
    from lanes.engines.throughput import ThroughputEngine  # noqa: PLC0415
    from lanes.host import models  # noqa: PLC0415

    _prepare_device()
    started_s = time.monotonic()
    pair = yield from models.loading(examined)
    obstacles = [path.problem for path in speculation_paths(pair.target) if path.lane == "interactive"]
    rounds = models.trimmable(pair.target) and not any(obstacles)
    usable = rounds and examined.same_vocabulary and pair.draft is not None and models.trimmable(pair.draft)
    settings = lanes["interactive"]
    interactive = SpeculativeEngine(
        pair.target,
        pair.draft if usable else None,
        pair.eos,
        settings.max_draft_tokens,
        prompt_caches,
        prompt_lookup=rounds and settings.prompt_lookup,
    )
    prompt = tuple(models.probe_prompt(pair.tokenizer))
    for _ in interactive.calibrating(prompt):
        yield wire.ModelProgress(pair.info.name, "calibrating")
    batches = lanes["throughput"]
    throughput = ThroughputEngine(pair.target, pair.eos, batches.max_active, batches.max_step_s, prompt_caches)
    yield wire.ModelProgress(pair.info.name, "calibrating")
    _try_batch(throughput, prompt)
    log.info("%s: decode steps %s chunks of prompts", pair.info.name, "carry" if throughput.carries else "cannot carry")
    cpu_rope.forget()  # the trials were passes outside of an engine's steps
    mx.clear_cache()
    return Resident(
        msgspec.structs.replace(pair.info, load_s=round(time.monotonic() - started_s, 3)),
        pair.tokenizer,
        {"interactive": interactive, "throughput": throughput},
    )


def _try_batch(engine: Engine, prompt: tuple[int, ...]) -> None:
    """A tiny real run: a cache that cannot be batched shows here, not in a client's answer."""
    trial = prompt[: LEAST_TOKENS - TRIAL_TOKENS]  # so short that nobody keeps it
    engine.add(SequenceSpec("probe", trial, TRIAL_TOKENS, wire.Sampling(temperature=0.0)))
    while engine.has_work():
        for emission in advance(engine):
            if emission.error is not None:
                raise ModelLoadFailed(f"the throughput lane cannot run it: {emission.error}")


@functools.cache
def _prepare_device() -> None:
    """Once, on the device thread, before anything is loaded on it."""
    import mlx.core as mx  # noqa: PLC0415
    from vllm_mlx.mlx_streams import bind_generation_streams  # noqa: PLC0415

    from lanes.engines import buffers  # noqa: PLC0415

    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    buffers.keep(None if on_cpu else memory_bytes(mx))
    if on_cpu:
        from lanes.engines import cpu_activations, cpu_attention, cpu_rope  # noqa: PLC0415

        cpu_attention.install()
        cpu_activations.install()
        cpu_rope.install()
    elif mx.cuda.is_available():
        from lanes.engines import cuda_attention  # noqa: PLC0415

        cuda_attention.install()
    # Both lanes on one stream of this thread. The default is whichever thread imported mlx_lm first.
    bind_generation_streams(["mlx_lm.generate"])
    # mlx-lm's batch generator wires the model's memory on Metal. Together with a second model and cache eviction that
    # has panicked whole machines (https://github.com/ml-explore/mlx/issues/3186).
    mx.set_wired_limit = lambda limit: 0 * limit
    # What has been imported stays. Looking through it would hold the device for 22 ms whenever a pair is unloaded.
    gc.freeze()


def _scripted(examined: Scripted, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> Resident:
    spec, tokenizer = examined.spec, examined.tokenizer
    info = wire.ModelInfo(
        name=spec.name,
        target=spec.target,
        draft=spec.draft,
        context_tokens=SCRIPTED_CONTEXT_TOKENS,
        vocab_size=tokenizer.vocab_size,
        target_bytes=0,
        draft_bytes=0,
        load_s=0.0,
    )
    return Resident(info, tokenizer, {lane: ScriptedEngine(**examined.script) for lane in lanes})
