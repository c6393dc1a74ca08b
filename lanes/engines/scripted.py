"""An engine without a model: answers at once with a text that the request's prompt decides.

It exists to measure and test everything around the engines: the router's own overhead, queues, cancellation, the wire.
Configured as ``target: "scripted:"`` with optional settings, ``scripted:tokens_per_step=4,step_s=0.01``.
"""

from __future__ import annotations

import codecs
import time
from collections import deque
from typing import Any, TypedDict

from lanes.engines.base import Emission, Handover, SequenceSpec, until_eos
from lanes.wire import SpecCounters

EOS = 0


class Script(TypedDict, total=False):
    """Settings of a :class:`ScriptedEngine`."""

    tokens_per_step: int
    step_s: float


def parse_script(text: str) -> Script:
    """Read ``tokens_per_step=4,step_s=0.01``; empty text gives the defaults.

    Raises:
        ValueError: naming the setting and what is allowed.
    """
    script: Script = {}
    for setting in filter(None, text.split(",")):
        name, _, value = setting.partition("=")
        if name == "tokens_per_step":
            script["tokens_per_step"] = int(value)
        elif name == "step_s":
            script["step_s"] = float(value)
        else:
            raise ValueError(f"unknown setting {name!r}; allowed: tokens_per_step, step_s")
    return script


class ScriptedEngine:
    """Echoes a sequence's prompt, over and over, until its budget is spent or the prompt holds :data:`EOS`.

    Args:
        tokens_per_step: tokens that one step gives to one sequence.
        step_s: how long a step holds the device, in seconds.
        eos: token ids that end an answer.
    """

    runs_ahead = False

    def __init__(self, tokens_per_step: int = 1, step_s: float = 0.0, eos: frozenset[int] = frozenset({EOS})) -> None:
        if tokens_per_step < 1 or step_s < 0:
            raise ValueError(f"tokens_per_step={tokens_per_step}, step_s={step_s}: at least 1 and 0 are needed")
        self._tokens_per_step = tokens_per_step
        self._step_s = step_s
        self._eos = eos
        self._specs: dict[str, SequenceSpec] = {}
        self._emitted: dict[str, int] = {}
        self._turns: deque[str] = deque()
        self.computed_tokens = 0

    def add(self, spec: SequenceSpec) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self.adopt(Handover(spec, spec.token_ids))

    def adopt(self, handover: Handover) -> None:
        """See :class:`lanes.engines.base.Adopting`."""
        request_id = handover.spec.request_id
        if request_id in self._specs:
            raise ValueError(f"request id {request_id!r} is in use")
        self._specs[request_id] = handover.spec
        self._emitted[request_id] = handover.emitted
        self._turns.append(request_id)

    def release(self, request_id: str) -> Handover | None:
        """See :class:`lanes.engines.base.Releasing`."""
        done = self._emitted.get(request_id)
        if not done:
            return None
        spec = self._specs[request_id]
        self.cancel(request_id)
        return Handover(spec, (*spec.prompt, *self._script(spec, 0, done)))

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

    def step(self, limit_s: float | None = None) -> list[Emission]:
        """``tokens_per_step`` tokens for every sequence, as a batch would give them."""
        if self._step_s:
            time.sleep(self._step_s)
        emissions = [self._advance(self._specs[request_id]) for request_id in self._turns]
        for emission in emissions:
            if emission.finish is not None:
                self.cancel(emission.request_id)
        return emissions

    def finish(self, since_s: float) -> list[Emission]:
        """A step has given all it had."""
        return []

    def close(self) -> None:
        """See :class:`lanes.engines.base.Engine`."""
        self._specs.clear()
        self._emitted.clear()
        self._turns.clear()

    def _advance(self, spec: SequenceSpec) -> Emission:
        done = self._emitted[spec.request_id]
        count = min(self._tokens_per_step, spec.max_tokens - done)
        token_ids = self._script(spec, done, count)
        token_ids = token_ids[: until_eos(token_ids, self._eos)]
        done += len(token_ids)
        self.computed_tokens += len(token_ids)
        self._emitted[spec.request_id] = done
        stopped = token_ids[-1] in self._eos
        return Emission(
            spec.request_id,
            token_ids,
            counters=SpecCounters() if spec.num_draft_tokens else None,
            finish="stop" if stopped else "length" if done >= spec.max_tokens else None,
        )

    @staticmethod
    def _script(spec: SequenceSpec, start: int, count: int) -> tuple[int, ...]:
        return tuple(spec.prompt[(start + i) % len(spec.prompt)] for i in range(count))


class ScriptedTokenizer:
    """UTF-8 bytes as tokens, shifted by one so that 0 can be :data:`EOS`. A chat is its last message."""

    vocab_size = 257
    eos_token_ids = (EOS,)

    def encode(self, text: str, **_: Any) -> list[int]:
        """One token for each byte."""
        return [byte + 1 for byte in text.encode()]

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> list[int]:
        """The last message's text, with an end so that the echo stops."""
        return [*self.encode(messages[-1]["content"]), EOS]

    @property
    def detokenizer(self) -> ScriptedDetokenizer:
        """A new one for each answer, as mlx-lm's wrapper gives it."""
        return ScriptedDetokenizer()


class ScriptedDetokenizer:
    """mlx-lm's streaming detokenizer interface over UTF-8 bytes."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new text."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        """Take one token; :attr:`last_segment` is the text that it completes."""
        self.last_segment = self._decoder.decode(bytes([token - 1])) if token != EOS else ""

    def finalize(self) -> None:
        """Flush an incomplete character."""
        self.last_segment = self._decoder.decode(b"", final=True)
