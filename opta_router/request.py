"""The request as everything behind the dialects sees it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

from lanes import wire
from policies.auto import AutoFacts
from policies.schema import PresetConfig, SamplingPreset

Operation: TypeAlias = Literal["chat", "text_completion"]

DEFAULT_MAX_TOKENS: Final = 4096
"""For a request that says nothing, in a preset that says nothing. The host clips it to what the context leaves."""

SEED_BITS: Final = 63

BYTES_PER_TOKEN: Final = 4
"""A rule of thumb for English and code: the router has no tokenizer, and a lane is chosen before the host is asked."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """What the client said about sampling, in :class:`lanes.wire.Sampling`'s terms. None: it said nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None

    def resolved(self, preset: SamplingPreset | None) -> wire.Sampling:
        """Ready for a host: the client's values, else the preset's, else the wire's defaults, and always a seed.

        One that nobody named is drawn here, so that an answer that must be begun anew has nothing to do with the first.
        """
        chosen: dict[str, Any] = {}
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value is None:
                value = getattr(preset, name, None)
            if value is not None:
                chosen[name] = value
        seed = chosen.get("seed")
        chosen["seeded"] = seed is not None
        chosen["seed"] = secrets.randbits(SEED_BITS) if seed is None else seed % 2**SEED_BITS
        return wire.Sampling(**chosen)


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for an answer, whatever dialect it came in.

    ``model`` is what the client typed. ``hints`` holds the body's top-level text fields that may ask for a lane
    (``service_tier`` and whatever else the configuration names). ``include_drafted``: the stream says which of its text
    was drafted. ``tools``: some are offered, and must not be called.
    ``user`` and ``metadata`` change nothing.
    """

    operation: Operation
    model: str
    prompt: wire.Prompt
    max_tokens: int | None = None
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    include_drafted: bool = False
    num_draft_tokens: int | None = None
    user: str | None = None
    metadata: Mapping[str, str] = {}
    service_tier: str | None = None
    tools: bool = False
    hints: Mapping[str, str] = {}

    def auto_facts(self, preset: PresetConfig | None) -> AutoFacts:
        """What an ``auto`` lane is chosen by."""
        preset_max = preset.sampling.max_tokens if preset is not None else None
        return AutoFacts(
            stream=self.stream,
            prompt_tokens=estimated_tokens(self.prompt),
            max_tokens=self.max_tokens or preset_max,
            tools=self.tools,
        )

    def estimated_work(self, preset: PresetConfig | None) -> int:
        """Tokens that the request may cost, prompt and answer, at least 1."""
        facts = self.auto_facts(preset)
        return max(facts.prompt_tokens, 1) + (facts.max_tokens or DEFAULT_MAX_TOKENS)

    def submission(
        self, request_id: str, model: str, lane: wire.Lane, preset: PresetConfig | None, draft_tokens: int
    ) -> wire.Submit:
        """The message to a host. A preset fills in what the client left out."""
        sampling = preset.sampling if preset is not None else None
        preset_max = sampling.max_tokens if sampling is not None else None
        return wire.Submit(
            request_id=request_id,
            model=model,
            lane=lane,
            prompt=with_system(self.prompt, preset.system if preset is not None else None),
            max_tokens=self.max_tokens or preset_max or DEFAULT_MAX_TOKENS,
            sampling=self.sampling.resolved(sampling),
            stop=self.stop or (sampling.stop if sampling is not None else ()),
            num_draft_tokens=draft_tokens,
            mark_drafted=self.include_drafted,
        )


def estimated_tokens(prompt: wire.Prompt) -> int:
    """Tokens of a prompt: exact for token ids, :data:`BYTES_PER_TOKEN` for text."""
    match prompt:
        case wire.TokenPrompt(token_ids):
            return len(token_ids)
        case wire.TextPrompt(text):
            return len(text.encode()) // BYTES_PER_TOKEN
        case wire.ChatPrompt(messages):
            return sum(len(message.content.encode()) for message in messages) // BYTES_PER_TOKEN


def with_system(prompt: wire.Prompt, system: str | None) -> wire.Prompt:
    """``prompt`` with a system message in front, if it is a chat that has none. Other prompts stay as they are."""
    if system is None or not isinstance(prompt, wire.ChatPrompt):
        return prompt
    if any(message.role == "system" for message in prompt.messages):
        return prompt
    return wire.ChatPrompt((wire.ChatMessage("system", system), *prompt.messages))


class ProposerReport(msgspec.Struct, frozen=True, kw_only=True):
    """One proposer's part, in draft tokens."""

    rounds: int
    proposed: int
    accepted: int
    rejected: int


class SpeculativeReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What speculation did for one answer. Counts are in draft tokens, and absent when it was not active.

    ``proposer`` names who proposed at least once, ``draft_model``, ``prompt_lookup`` or both with a ``+``, and
    ``proposers`` has the part of each. ``mean_accepted_tokens`` is of a round; ``acceptance_by_position`` is the
    accepted share of what was compared as the first, second, … token of a round.
    """

    requested: bool
    active: bool
    reason: str
    telemetry: Literal["native", "inferred", "unavailable"] | None = None
    rounds: int | None = None
    proposed: int | None = None
    accepted: int | None = None
    rejected: int | None = None
    ignored: int | None = None
    acceptance_ratio: float | None = None
    mean_accepted_tokens: float | None = None
    acceptance_by_position: tuple[float, ...] | None = None
    proposer: str | None = None
    proposers: Mapping[wire.Proposer, ProposerReport] | None = None

    @classmethod
    def of(cls, counters: wire.SpecCounters, *, requested: bool, active: bool, reason: str) -> SpeculativeReport:
        """The report of an answer whose engine counted."""
        proposers = proposers_of(counters)
        return cls(
            requested=requested,
            active=active,
            reason=reason,
            telemetry="native",
            rounds=counters.rounds,
            proposed=counters.proposed,
            accepted=counters.accepted,
            rejected=counters.rejected,
            ignored=counters.ignored,
            acceptance_ratio=_rounded(counters.acceptance_ratio),
            mean_accepted_tokens=_rounded(counters.mean_accepted),
            acceptance_by_position=tuple(round(ratio, 4) for ratio in counters.acceptance_by_position) or None,
            proposer="+".join(proposers) or None,
            proposers=proposers or None,
        )


def proposers_of(counters: wire.SpecCounters) -> dict[wire.Proposer, ProposerReport]:
    """The part of each that proposed."""
    looked_up = ProposerReport(
        rounds=counters.lookup_rounds,
        proposed=counters.lookup_proposed,
        accepted=counters.lookup_accepted,
        rejected=counters.lookup_rejected,
    )
    drafted = ProposerReport(
        rounds=counters.rounds - counters.lookup_rounds,
        proposed=counters.proposed - counters.lookup_proposed,
        accepted=counters.draft_accepted,
        rejected=counters.draft_rejected,
    )
    parts: dict[wire.Proposer, ProposerReport] = {"draft_model": drafted, "prompt_lookup": looked_up}
    return {proposer: part for proposer, part in parts.items() if part.rounds}


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)


class Demotion(msgspec.Struct, frozen=True):
    """An answer's move to another lane, after so many of its tokens."""

    lane: wire.Lane
    after_tokens: int


class OptaReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The ``opta`` object of an answer: who served it, why, and how quickly. Times in milliseconds since arrival.

    ``lane`` is the one that admitted it, as in the headers; ``demoted`` says where it went on.
    """

    lane: wire.Lane
    route: str
    queue_ms: float
    ttft_ms: float | None = None
    resumed: int
    hint_ignored: str | None = None
    demoted: Demotion | None = None
    speculative: SpeculativeReport


class Ending(msgspec.Struct, frozen=True):
    """How an answer ended, for whoever encodes it."""

    finished: wire.Finished
    opta: OptaReport


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a request has used so far."""

    prompt_tokens: int
    completion_tokens: int
