"""The configuration, typed: one struct for each mapping of the YAML file, with its defaults and bounds.

Fields are named as operators write them. Durations are :class:`~policies.quantities.Seconds` (a ``float``), sizes are
bytes. Structs are frozen: a reload makes a new :class:`Config`, and whoever holds the old one keeps a whole one.
What must hold *between* values is in :mod:`policies.consistency`; read files with :func:`policies.load.load`.
"""

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from policies.quantities import ByteSize, Digest, KeepAlive, MemoryAmount, Seconds, Secret, encode_hook

LaneName: TypeAlias = Literal["interactive", "throughput"]
# ``auto``: interactive while that lane has room, else throughput; admission resolves it.
Lane: TypeAlias = Literal["interactive", "throughput", "auto"]
Rule: TypeAlias = Literal["hint", "preset", "client", "default"]
SpeculationMode: TypeAlias = Literal["auto", "off", "require"]

# Names stand in headers, URLs and metric labels, so they are short printable ASCII.
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$", max_length=200)]
Text: TypeAlias = Annotated[str, Meta(min_length=1)]
Weight: TypeAlias = Annotated[float, Meta(gt=0, le=1000)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000)]
Ratio: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
DraftLength: TypeAlias = Annotated[int, Meta(ge=1, le=64)]


_T = TypeVar("_T")


def _default(value: _T) -> _T:
    """A default that msgspec's JSON schema need not write: it cannot encode our quantities."""
    return msgspec.field(default_factory=lambda: value)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping of the file. Unknown keys are errors."""


class ServerConfig(_Section, frozen=True, kw_only=True):
    """Where the router listens and what it takes from the network."""

    host: Text = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="0 lets the system choose a free one")] = 8400
    drain_timeout: Annotated[Seconds, Meta(description="how long running requests may take to end")] = _default(
        Seconds(30)
    )
    allowed_hosts: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\[\]-]+$")], ...],
        Meta(description="names accepted in Host; none: loopback names and the bound host"),
    ] = ()
    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^https?://[^/\s]+$")], ...],
        Meta(description="browser origins accepted beside our own"),
    ] = ()
    max_body: Annotated[ByteSize, Meta(description="a larger request body is a 413")] = _default(ByteSize(4 * 1024**2))
    body_timeout: Annotated[Seconds, Meta(description="a body that takes longer is a 408")] = _default(Seconds(30))
    max_connections: Annotated[Count, Meta(description="one more is a 503; idle ones count, too")] = 2048
    admin_key_sha256: Digest | None = None
    standby: Annotated[
        bool, Meta(description="a second engine process, without a model, is ready to take a dead one's place")
    ] = True


class ModelConfig(_Section, frozen=True, kw_only=True):
    """One model that clients can name, with the draft that speeds it up."""

    name: Name
    target: Annotated[Text, Meta(description="embedded:…, a local directory, or a Hugging Face repository")]
    draft: Text | None = None
    aliases: Annotated[
        tuple[Name, ...], Meta(description="other names; of models that share one, the least busy answers")
    ] = ()
    keep_alive: Annotated[
        KeepAlive, Meta(description="idle time before unload; -1: never, not even for another model's sake")
    ] = _default(KeepAlive(600))
    preload: bool = False
    context_tokens: Annotated[
        Count | None, Meta(description="prompt and answer together, if less than the model allows")
    ] = None


class LaneSpeculation(_Section, frozen=True, kw_only=True):
    """Whether the lane speculates: ``auto`` with approved pairs, ``require`` with any pair that can, or not at all."""

    mode: SpeculationMode = "auto"
    max_draft_tokens: DraftLength = 8
    prompt_lookup: Annotated[
        bool,
        Meta(description="let prompt and answer propose what followed the same tokens before, with a draft or without"),
    ] = True


class LaneConfig(_Section, frozen=True, kw_only=True):
    """What both lanes have in common; each lane has its own defaults."""

    weight: Annotated[Weight, Meta(description="share of device time while both lanes have work")] = 1.0
    max_active: Annotated[Count, Meta(description="sequences decoded at a time")] = 1
    max_queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 32
    queue_timeout: Annotated[Seconds, Meta(description="longest wait in the queue")] = _default(Seconds(30))
    spill: Annotated[LaneName | None, Meta(description="lane that takes what a full queue cannot")] = None


class InteractiveLane(LaneConfig, frozen=True, kw_only=True):
    """The lane that answers at once."""

    weight: Weight = 8.0
    demote_after_tokens: Annotated[
        Count | None, Meta(description="an auto request that outlives this moves to the throughput lane")
    ] = 512
    speculation: LaneSpeculation = LaneSpeculation()


class ThroughputLane(LaneConfig, frozen=True, kw_only=True):
    """The lane that batches."""

    max_active: Count = 32
    max_queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 512
    queue_timeout: Seconds = _default(Seconds(300))
    max_step_ms: Annotated[
        float,
        Meta(
            gt=0,
            le=60_000,
            description="kept by steps while the interactive lane is in use, if one sequence's step keeps it",
        ),
    ] = 50.0


class LanesConfig(_Section, frozen=True, kw_only=True):
    """The two lanes."""

    interactive: InteractiveLane = _default(InteractiveLane())
    throughput: ThroughputLane = _default(ThroughputLane())


class SamplingPreset(_Section, frozen=True, kw_only=True):
    """Sampling values for requests that leave them out; None: the server's own default."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    min_p: Ratio | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    max_tokens: Count | None = None
    stop: tuple[Text, ...] = ()
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None


class PresetConfig(_Section, frozen=True, kw_only=True):
    """A model with a lane, sampling values and a system prompt, under a name of its own."""

    name: Name
    model: Name
    lane: Lane | None = None
    sampling: SamplingPreset = SamplingPreset()
    system: str | None = None


class ClientConfig(_Section, frozen=True, kw_only=True):
    """One client, known by its key, and what it may ask for."""

    name: Name
    key_sha256: Digest
    lane: Lane | None = None
    may_hint: Annotated[
        tuple[Lane, ...] | None, Meta(description="lanes it may ask for; unset: its own lane and lesser ones")
    ] = None
    max_active: Annotated[
        Count | None, Meta(description="its requests at a time, over both lanes; unset: the lanes' bounds alone")
    ] = None
    weight: Annotated[Weight, Meta(description="fair share inside a lane's queue")] = 1.0


class HintRule(_Section, frozen=True, kw_only=True):
    """Which lane the values of one request header, or of one body field, ask for. Exactly one of the two is set."""

    header: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)] | None = None
    body: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)] | None = None
    values: Annotated[dict[str, Lane], Meta(min_length=1)]

    @property
    def source(self) -> str:
        """The header or field, as routes name it."""
        return self.header or self.body or ""


class AutoConfig(_Section, frozen=True, kw_only=True):
    """From where on an ``auto`` request is one for the throughput lane."""

    long_prompt_tokens: Annotated[
        Count, Meta(description="estimated; a longer prompt is not for the interactive lane")
    ] = 4096
    long_answer_tokens: Annotated[
        Count, Meta(description="an answer that is not streamed and may be longer is not for the interactive lane")
    ] = 1024


class RoutingConfig(_Section, frozen=True, kw_only=True):
    """In which order the rules are asked, and what holds when none of them decides."""

    order: tuple[Rule, ...] = ("hint", "preset", "client", "default")
    default: Lane = "auto"
    auto: AutoConfig = AutoConfig()


class PairMeasurement(_Section, frozen=True, kw_only=True):
    """What a benchmark found of a pair, where and when. Figures by name."""

    date: Text
    machine: Text
    figures: dict[str, float] = {}


class ApprovedPair(_Section, frozen=True, kw_only=True):
    """A pair that may speculate, and the evidence that it should: in words, or a benchmark's file."""

    target: Text
    draft: Text
    evidence: Text
    measured: Annotated[PairMeasurement | None, Meta(description="what `opta-router bench gate --approve` found")] = (
        None
    )


class DeniedPair(_Section, frozen=True, kw_only=True):
    """Pairs that must not speculate. What is set must all match: a model family, or patterns with ``*`` and ``?``."""

    family: Text | None = None
    target: Text | None = None
    draft: Text | None = None
    reason: Text
    link: str | None = None


class SpeculationConfig(_Section, frozen=True, kw_only=True):
    """Which pairs may speculate. These entries come before the built-in ones of ``speculation.yaml``."""

    require_supported: Annotated[
        bool, Meta(description="refuse a pair whose speculation cannot work, instead of serving without")
    ] = False
    approved: tuple[ApprovedPair, ...] = ()
    denied: tuple[DeniedPair, ...] = ()
    approvals_file: Annotated[
        Text | None,
        Meta(description="more entries, as `opta-router bench gate --approve` writes them; beside this file"),
    ] = None
    min_acceptance: Annotated[
        Ratio, Meta(description="below this acceptance ratio speculation is switched off, then retried; 0: never")
    ] = 0.35
    acceptance_window: Annotated[
        Count, Meta(description="compared draft tokens that the ratio is taken over; no verdict on fewer")
    ] = 128
    retry_after: Annotated[
        Seconds, Meta(description="time to the first retry; each that fails doubles it, up to sixteen times")
    ] = _default(Seconds(60))
    retry_margin: Annotated[
        Ratio, Meta(description="by how much a retry must exceed min_acceptance for the pair to come back")
    ] = 0.05


class MemoryConfig(_Section, frozen=True, kw_only=True):
    """How much of the device's memory may be used, by prompt caches, too, and from where on work is shed."""

    limit: MemoryAmount = _default(MemoryAmount(fraction=0.9))
    prompt_caches: Annotated[
        MemoryAmount | None,
        Meta(
            description="within the limit, what loaded models leave of it: KV caches kept across requests; null: none"
        ),
    ] = _default(MemoryAmount(fraction=0.1))
    shed: MemoryAmount = _default(MemoryAmount(fraction=0.95))


class TelemetryConfig(_Section, frozen=True, kw_only=True):
    """Where traces and metrics go. No endpoint: nowhere."""

    otlp_endpoint: Annotated[str, Meta(pattern=r"^https?://\S+$")] | None = None
    otlp_headers: dict[str, Secret] = {}
    service_name: Text = "opta-router"
    trust_client_sampling: bool = False
    record_content: Annotated[bool, Meta(description="record prompts and answers in spans")] = False
    sample_ratio: Ratio = 1.0
    max_traces_per_s: Annotated[
        float, Meta(ge=0, le=10_000, description="of more requests a second some are traced, and all are counted")
    ] = 10.0
    access_log: Annotated[bool, Meta(description="a line in the log for each HTTP exchange")] = False


class Config(_Section, frozen=True, kw_only=True):
    """The router's configuration."""

    server: ServerConfig = _default(ServerConfig())
    models: tuple[ModelConfig, ...] = ()
    lanes: LanesConfig = _default(LanesConfig())
    presets: tuple[PresetConfig, ...] = ()
    clients: tuple[ClientConfig, ...] = ()
    hints: tuple[HintRule, ...] = ()
    routing: RoutingConfig = RoutingConfig()
    speculation: SpeculationConfig = _default(SpeculationConfig())
    memory: MemoryConfig = _default(MemoryConfig())
    telemetry: TelemetryConfig = TelemetryConfig()


def plain(config: msgspec.Struct) -> dict[str, Any]:
    """A configuration, or a section, as JSON-ready data: seconds and bytes as numbers, secrets left out."""
    data: dict[str, Any] = msgspec.to_builtins(config, enc_hook=encode_hook)
    return data
