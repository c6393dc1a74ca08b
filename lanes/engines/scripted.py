"""An engine without a model: answers at once with a text that the request's prompt decides.

It exists to measure and test everything around the engines: the router's own overhead, queues, cancellation, the wire.
Configured as ``target: "scripted:"`` with optional settings, ``scripted:tokens_per_step=4,step_s=0.01``.
"""

from __future__ import annotations

import time
from collections import deque

from lanes.engines.base import Emission, SequenceSpec, until_eos
from lanes.wire import SpecCounters

EOS = 0


class ScriptedEngine:
    """Echoes a sequence's prompt, over and over, until its budget is spent or the prompt holds :data:`EOS`.

    Args:
        tokens_per_step: tokens that one step gives to one sequence.
        step_s: how long a step holds the device, in seconds.
        eos: token ids that end an answer.
    """

    def __init__(self, tokens_per_step: int = 1, step_s: float = 0.0, eos: frozenset[int] = frozenset({EOS})) -> None:
        if tokens_per_step < 1 or step_s < 0:
            raise ValueError(f"tokens_per_step={tokens_per_step}, step_s={step_s}: at least 1 and 0 are needed")
        self._tokens_per_step = tokens_per_step
        self._step_s = step_s
        self._eos = eos
        self._specs: dict[str, SequenceSpec] = {}
        self._emitted: dict[str, int] = {}
        self._turns: deque[str] = deque()

    def add(self, spec: SequenceSpec) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        if spec.request_id in self._specs:
            raise ValueError(f"request id {spec.request_id!r} is in use")
        self._specs[spec.request_id] = spec
        self._emitted[spec.request_id] = 0
        self._turns.append(spec.request_id)

    def cancel(self, request_id: str) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        if self._specs.pop(request_id, None) is not None:
            del self._emitted[request_id]
            self._turns.remove(request_id)

    def has_work(self) -> bool:
        """See :class:`lanes.engines.base.Engine`."""
        return bool(self._specs)

    def active(self) -> int:
        """See :class:`lanes.engines.base.Engine`."""
        return len(self._specs)

    def step(self) -> list[Emission]:
        """``tokens_per_step`` tokens for every sequence, as a batch would give them."""
        if self._step_s:
            time.sleep(self._step_s)
        emissions = [self._advance(self._specs[request_id]) for request_id in self._turns]
        for emission in emissions:
            if emission.finish is not None:
                self.cancel(emission.request_id)
        return emissions

    def settle(self) -> None:
        """Nothing runs ahead."""

    def close(self) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self._specs.clear()
        self._emitted.clear()
        self._turns.clear()

    def _advance(self, spec: SequenceSpec) -> Emission:
        done = self._emitted[spec.request_id]
        count = min(self._tokens_per_step, spec.max_tokens - done)
        token_ids = tuple(spec.prompt[(done + i) % len(spec.prompt)] for i in range(count))
        token_ids = token_ids[: until_eos(token_ids, self._eos)]
        done += len(token_ids)
        self._emitted[spec.request_id] = done
        stopped = token_ids[-1] in self._eos
        return Emission(
            spec.request_id,
            token_ids,
            counters=SpecCounters() if spec.num_draft_tokens else None,
            finish="stop" if stopped else "length" if done >= spec.max_tokens else None,
        )
