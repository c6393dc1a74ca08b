"""Messages between the front door and a host.

Every message is a member of a msgspec tagged union, so a peer can only ever decode what is declared here;
:mod:`lanes.framing` puts them on a byte stream. The router speaks :data:`ToHost`,
the host speaks :data:`FromHost`. Times are seconds on the host's monotonic clock, sent only as differences.

Order of a link's life::

    host   -> Hello                      protocol version, pid, library versions
    router -> StandBy                    if there is a host already, and this one is to wait for its end
    router -> Configure                  lanes and models
    host   -> Ready
    router -> Submit | Cancel | Move | SetLanes | LimitPromptCaches | Prepare | Load | Unload | Shutdown, in any order
    host   -> Events | Stats | Model…, in any order; each Submit ends in exactly one Finished or Failed

A pair's life on a host: Prepare → ModelPrepared | ModelFailed; then Load → ModelProgress… → ModelLoaded | ModelFailed;
then Unload → ModelUnloaded. Unload gives up a load that is under way, too. What is loaded, the router decides.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import zip_longest
from typing import Any, Final, Literal, Self

import msgspec
from msgspec.structs import astuple

PROTOCOL_VERSION: Final = 5
SCRIPTED: Final = "scripted:"
"""How a target begins that has no files."""

Lane = Literal["interactive", "throughput"]
Proposer = Literal["draft_model", "prompt_lookup"]
FinishReason = Literal["stop", "length", "cancelled"]
Span = tuple[int, int]
"""Where a piece of a text begins and ends, in characters (code points)."""

Stage = Literal["fetching", "examining", "target", "draft", "calibrating"]
"""What is done to a pair, in this order."""


class FailureCode(StrEnum):
    """Why a host failed one request."""

    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_PROMPT = "invalid_prompt"
    MODEL_UNAVAILABLE = "model_unavailable"
    ENGINE_ERROR = "engine_error"


class Message(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of everything on the wire."""


# values


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen. ``temperature`` 0 is greedy.

    Penalties follow vLLM's semantics: ``repetition_penalty`` looks at prompt and answer, ``presence_penalty`` and
    ``frequency_penalty`` at the answer alone. ``seed`` is always set by the time a request reaches a host. With
    ``seeded`` it is the client's, and the text is a function of it: the same whatever is drafted, in either lane and on
    any host. Without, only the distribution is promised.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    seeded: bool = True
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, its content already reduced to text."""

    role: str
    content: str
    name: str | None = None


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat"):
    """Rendered by the model's own chat template, in the host."""

    messages: tuple[ChatMessage, ...]


class TextPrompt(msgspec.Struct, frozen=True, tag="text"):
    """Tokenised as it stands."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens"):
    """Token ids, used as they stand."""

    token_ids: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


class SpecCounters(msgspec.Struct, frozen=True, omit_defaults=True):
    """Draft tokens of one request, in tokens. ``accepted + rejected + ignored == proposed``, always.

    *Rejected* were compared with the target and refused; *ignored* were drafted but never compared or never
    delivered, because the request ended first.

    The ``lookup_`` counts are of what prompt lookup proposed; the rest is the draft model's. ``accepted_at`` and
    ``compared_at`` count by place in the round, from the first draft token on: they add up to ``accepted`` and
    ``accepted + rejected``.
    """

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    rejected: int = 0
    ignored: int = 0
    lookup_rounds: int = 0
    lookup_proposed: int = 0
    lookup_accepted: int = 0
    lookup_rejected: int = 0
    accepted_at: tuple[int, ...] = ()
    compared_at: tuple[int, ...] = ()

    @classmethod
    def of_round(cls, proposer: Proposer, proposed: int, accepted: int, compared: int) -> SpecCounters:
        """One round: the first ``compared`` of the proposed tokens count, and the first ``accepted`` of those hold."""
        if not proposed:
            return cls()
        looked_up = proposer == "prompt_lookup"
        return cls(
            rounds=1,
            proposed=proposed,
            accepted=accepted,
            rejected=compared - accepted,
            ignored=proposed - compared,
            lookup_rounds=int(looked_up),
            lookup_proposed=proposed if looked_up else 0,
            lookup_accepted=accepted if looked_up else 0,
            lookup_rejected=compared - accepted if looked_up else 0,
            accepted_at=(1,) * accepted,
            compared_at=(1,) * compared,
        )

    def undelivered(self, lost: int) -> SpecCounters:
        """These of one round, if the last ``lost`` of its accepted tokens were not delivered after all: ignored."""
        if not lost:
            return self
        delivered = self.accepted - lost
        compared = (*self.compared_at[:delivered], *(0,) * lost, *self.compared_at[self.accepted :])
        return msgspec.structs.replace(
            self,
            accepted=delivered,
            ignored=self.ignored + lost,
            lookup_accepted=min(self.lookup_accepted, delivered),
            accepted_at=self.accepted_at[:delivered],
            compared_at=compared,
        )

    def __add__(self, other: SpecCounters) -> SpecCounters:
        sums = {name: _sum(getattr(self, name), getattr(other, name)) for name in self.__struct_fields__}
        return SpecCounters(**sums)

    @property
    def acceptance_ratio(self) -> float | None:
        """Accepted share of the compared tokens; None when none was compared."""
        compared = self.accepted + self.rejected
        return self.accepted / compared if compared else None

    @property
    def draft_accepted(self) -> int:
        """Those of ``accepted`` that the draft model proposed."""
        return self.accepted - self.lookup_accepted

    @property
    def draft_rejected(self) -> int:
        """Those of ``rejected`` that the draft model proposed."""
        return self.rejected - self.lookup_rejected

    @property
    def mean_accepted(self) -> float | None:
        """Accepted tokens of a round, on average; None without a round."""
        return self.accepted / self.rounds if self.rounds else None

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """Accepted share of what was compared at each place of a round."""
        return tuple(hit / seen for hit, seen in zip_longest(self.accepted_at, self.compared_at, fillvalue=0))


def _sum(one: Any, other: Any) -> Any:
    """Of two numbers, or place by place."""
    if isinstance(one, tuple):
        return tuple(a + b for a, b in zip_longest(one, other, fillvalue=0))
    return one + other


class Emitted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What earlier hosts have given of an answer: its tokens, how many characters of their text, and their drafts.

    Some of the tokens' text may not have been given: of an incomplete character, or of what may be a stop string.
    """

    token_ids: tuple[int, ...] = ()
    text_chars: int = 0
    speculative: SpecCounters | None = None


class ModelSpec(msgspec.Struct, frozen=True):
    """A model to serve: where its weights are. ``target`` and ``draft`` are resolved by the host.

    ``keep_alive_s`` is the idle time before it is unloaded; negative: never, not even for another's sake.
    ``context_tokens`` bounds prompt and answer together; None: the model's own bound.
    """

    name: str
    target: str
    draft: str | None = None
    preload: bool = True
    keep_alive_s: float = -1.0
    context_tokens: int | None = None

    @property
    def scripted(self) -> bool:
        """Whether it is the engine without a model."""
        return self.target.startswith(SCRIPTED)


class LaneSpec(msgspec.Struct, frozen=True):
    """One lane's settings on the device.

    ``max_draft_tokens`` bounds a speculative round; 0: the lane never drafts. ``prompt_lookup``: the text itself may
    propose, too. ``max_step_s`` bounds a step while another lane is in use; None: the engine's own bounds.
    """

    weight: float
    max_active: int
    max_draft_tokens: int = 0
    max_step_s: float | None = None
    prompt_lookup: bool = False


class ModelInfo(msgspec.Struct, frozen=True):
    """What is known of a loaded model. Sizes in bytes, lengths in tokens."""

    name: str
    target: str
    draft: str | None
    context_tokens: int
    vocab_size: int
    target_bytes: int
    draft_bytes: int
    load_s: float


class CallPath(msgspec.Struct, frozen=True):
    """How an installed engine could speculate, as looking at it shows. ``problem``: why not; None: it can."""

    lane: Lane
    path: str
    problem: str | None = None


class PairFacts(msgspec.Struct, frozen=True):
    """What is known of a pair before any of its weights is read. Sizes in bytes, lengths in tokens.

    ``kv_bytes`` are the caches of ``kv_sequences`` sequences of the whole context each: as many as the lanes allow
    (``kv_at_bounds``), or, where no bound on the context is configured, one in each lane.
    """

    context_tokens: int
    target_bytes: int
    draft_bytes: int
    kv_bytes: int
    kv_sequences: int
    kv_at_bounds_bytes: int
    target_family: str = ""
    draft_family: str = ""
    same_vocabulary: bool = False
    same_template: bool = False
    cache_trimmable: bool = False
    paths: tuple[CallPath, ...] = ()

    @property
    def total_bytes(self) -> int:
        """What the pair needs on the device."""
        return self.target_bytes + self.draft_bytes + self.kv_bytes


class Versions(msgspec.Struct, frozen=True):
    """Installed engines and backend of a host. ``memory_bytes`` is what the device can use; 0: unknown."""

    mlx: str
    mlx_lm: str
    vllm_mlx: str
    device: str
    blas: str | None = None
    memory_bytes: int = 0


# router to host


class Configure(Message, frozen=True):
    """The first message to a host."""

    lanes: dict[Lane, LaneSpec]
    models: tuple[ModelSpec, ...]
    protocol: int = PROTOCOL_VERSION


class Submit(Message, frozen=True):
    """Run one request in one lane. ``request_id`` is unique on a link for as long as the request lives.

    With ``emitted`` the answer goes on behind it, as it would have gone on where that was made: the first ``Delta`` has
    the index and the text that come next. ``max_tokens`` bounds the answer as a whole. With ``mark_drafted`` each
    ``Delta`` says which of its text was drafted.
    """

    request_id: str
    model: str
    lane: Lane
    prompt: Prompt
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    num_draft_tokens: int = 0
    emitted: Emitted = Emitted()
    mark_drafted: bool = False


class Cancel(Message, frozen=True):
    """Take a request off the device within one step. Its last event is then ``Finished`` with reason ``cancelled``."""

    request_id: str


class Move(Message, frozen=True):
    """Continue a running request in another lane, with its KV cache. A request that has ended is left alone."""

    request_id: str
    lane: Lane


class SetLanes(Message, frozen=True):
    """New lane weights, in force from the next device step. Other settings are those of :class:`Configure`."""

    lanes: dict[Lane, LaneSpec]


class StandBy(Message, frozen=True):
    """Before :class:`Configure`, which comes when another host is gone.

    ``engines``: import meanwhile what models need that are not scripted.
    """

    engines: bool = False


class LimitPromptCaches(Message, frozen=True):
    """What all prompt caches together may take from now on; 0, as before the first such message: nothing is kept."""

    max_bytes: int


class Prepare(Message, frozen=True):
    """Find a pair's files, fetch them if need be, and look at them; nothing is loaded."""

    name: str


class Load(Message, frozen=True):
    """Load a pair that was prepared."""

    name: str


class Unload(Message, frozen=True):
    """Give a pair's memory back, or give its load up. Whatever still runs on it ends with a failure."""

    name: str


class Shutdown(Message, frozen=True):
    """End the process in order."""


ToHost = (
    StandBy | Configure | Submit | Cancel | Move | SetLanes | LimitPromptCaches | Prepare | Load | Unload | Shutdown
)


# host to router


class Hello(Message, frozen=True):
    """The first message of a host. The token proves that it is the child that was started."""

    pid: int
    token: str
    versions: Versions
    protocol: int = PROTOCOL_VERSION


class ModelPrepared(Message, frozen=True):
    """The answer to :class:`Prepare`."""

    name: str
    facts: PairFacts


class ModelProgress(Message, frozen=True):
    """Where a pair that is prepared or loaded is. ``total_bytes`` 0: unknown, or nothing that has bytes."""

    name: str
    stage: Stage
    done_bytes: int = 0
    total_bytes: int = 0


class ModelLoaded(Message, frozen=True):
    """A model can be used."""

    info: ModelInfo


class ModelFailed(Message, frozen=True):
    """A model could not be loaded; the others are served."""

    name: str
    message: str


class ModelUnloaded(Message, frozen=True):
    """A model's memory was given back."""

    name: str


class Ready(Message, frozen=True):
    """The host takes requests."""


class Started(Message, frozen=True):
    """The request is on the device. ``prompt_tokens`` counts the rendered prompt."""

    request_id: str
    prompt_tokens: int


class Delta(Message, frozen=True):
    """New tokens. ``index`` is the number of completion tokens before this one: a gap or overlap is a fault.

    ``text`` may be empty while a multi-byte character or a possible stop string is incomplete. ``speculative`` counts
    from the answer's beginning to this event. ``drafted`` are the pieces of ``text`` whose tokens the draft proposed
    and the target accepted, if the request has ``mark_drafted``.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    speculative: SpecCounters | None = None
    drafted: tuple[Span, ...] = ()


class Moved(Message, frozen=True):
    """The answer to :class:`Move`: where the request is now. With its old lane: it could not move, and stays.

    The ``completion_tokens`` before this event came from the old lane.
    """

    request_id: str
    lane: Lane
    completion_tokens: int


class Finished(Message, frozen=True):
    """The request ended in order. ``speculative`` is None when the request did not speculate."""

    request_id: str
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    speculative: SpecCounters | None = None


class Failed(Message, frozen=True):
    """The request ended badly."""

    request_id: str
    code: str
    message: str


Event = Started | Delta | Moved | Finished | Failed


class Events(Message, frozen=True):
    """What one device step brought, for all requests together, in order."""

    items: tuple[Event, ...]


class _Sums(msgspec.Struct, frozen=True):
    """Numbers of which two sets can be added up."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))


class LaneStats(_Sums, frozen=True):
    """One lane: ``active`` sequences now, the others since the host started.

    Of the ``bounded_steps``, beside another lane that was in use, ``late_steps`` took longer than they should.
    """

    device_s: float = 0.0
    steps: int = 0
    active: int = 0
    bounded_steps: int = 0
    late_steps: int = 0

    def without_contents(self) -> LaneStats:
        """What stays of it when its host is gone."""
        return msgspec.structs.replace(self, active=0)


class PromptCacheStats(_Sums, frozen=True):
    """The prompt caches of one model: ``entries`` and ``size_bytes`` now, the others since the host started.

    A hit is a prompt of which something was known: ``reused_tokens`` in all were. Very short ones do not count.
    """

    entries: int = 0
    size_bytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    reused_tokens: int = 0

    def without_contents(self) -> PromptCacheStats:
        """What stays of it when its host is gone."""
        return msgspec.structs.replace(self, entries=0, size_bytes=0)


class Stats(Message, frozen=True):
    """A heartbeat of the device loop. Memory is MLX's active memory in bytes. ``prompt_caches`` are by model."""

    steps: int
    lanes: dict[Lane, LaneStats]
    active_memory_bytes: int
    peak_memory_bytes: int
    prompt_caches: dict[str, PromptCacheStats] = {}


FromHost = Hello | ModelPrepared | ModelProgress | ModelLoaded | ModelFailed | ModelUnloaded | Ready | Events | Stats
