"""Every name that our traces and metrics use, in one place.

The GenAI conventions are still in development and their constants move between packages, so ours are written out.
``opta.*`` names are ours and public: once released, a name does not change meaning.
"""

from typing import Final, Literal

import msgspec

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
SERVICE_INSTANCE_ID: Final = "service.instance.id"
SCOPE: Final = "opta_router"
PROVIDER: Final = "opta_router"
"""Value of ``gen_ai.provider.name``: the conventions' list knows no local server."""

# spans; the SERVER span is named by method and route, the CLIENT span by operation and model

SPAN_QUEUE: Final = "opta.queue"
SPAN_DECODE: Final = "opta.decode"

# events

EVENT_ADMITTED: Final = "opta.lane.admitted"
EVENT_DEMOTED: Final = "opta.lane.demoted"
EVENT_FIRST_TOKEN: Final = "gen_ai.first_token"  # noqa: S105
EVENT_RESUMED: Final = "opta.resumed"

# HTTP, stable conventions

HTTP_REQUEST_METHOD: Final = "http.request.method"
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
HTTP_ROUTE: Final = "http.route"
URL_PATH: Final = "url.path"
URL_SCHEME: Final = "url.scheme"
CLIENT_ADDRESS: Final = "client.address"
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
USER_AGENT_ORIGINAL: Final = "user_agent.original"
ERROR_TYPE: Final = "error.type"

# GenAI conventions

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
CONTENT: Final = frozenset({INPUT_MESSAGES, OUTPUT_MESSAGES, SYSTEM_INSTRUCTIONS})
"""Prompts and answers: only with ``telemetry.record_content``."""

# not in the conventions: as vLLM and SGLang name them; latencies in seconds

REQUEST_ID: Final = "gen_ai.request.id"
LATENCY_TIME_IN_QUEUE: Final = "gen_ai.latency.time_in_queue"
LATENCY_TIME_TO_FIRST_TOKEN: Final = "gen_ai.latency.time_to_first_token"  # noqa: S105
LATENCY_E2E: Final = "gen_ai.latency.e2e"

# ours

LANE: Final = "opta.lane"
LANE_REASON: Final = "opta.lane.reason"
LANE_HINT: Final = "opta.lane.hint"
PRESET: Final = "opta.preset"
CLIENT: Final = "opta.client"
SUB_CLIENT: Final = "opta.sub_client"
QUEUE_MS: Final = "opta.queue_ms"
TTFT_MS: Final = "opta.ttft_ms"
RESUMED: Final = "opta.resumed"
EMITTED_TOKENS: Final = "opta.resumed.emitted_tokens"
"""On the event :data:`EVENT_RESUMED`: tokens that the client already had."""

DEMOTED: Final = "opta.demoted"
"""Present, and true, if the answer began in the interactive lane and went on in the other."""
DEMOTED_EMITTED_TOKENS: Final = "opta.demoted.emitted_tokens"

SPEC_REQUESTED: Final = "opta.spec.requested"
SPEC_ACTIVE: Final = "opta.spec.active"
SPEC_REASON: Final = "opta.spec.reason"
SPEC_TELEMETRY: Final = "opta.spec.telemetry"
SPEC_ROUNDS: Final = "opta.spec.rounds"
SPEC_DRAFT_MODEL: Final = "opta.spec.draft.model"
SPEC_PROPOSED_TOKENS: Final = "opta.spec.draft.proposed_tokens"
SPEC_ACCEPTED_TOKENS: Final = "opta.spec.draft.accepted_tokens"
SPEC_REJECTED_TOKENS: Final = "opta.spec.draft.rejected_tokens"
SPEC_IGNORED_TOKENS: Final = "opta.spec.draft.ignored_tokens"
SPEC_ACCEPTANCE_RATIO: Final = "opta.spec.acceptance_ratio"
SPEC_PROPOSER: Final = "opta.spec.proposer"
SPEC_MEAN_ACCEPTED_TOKENS: Final = "opta.spec.mean_accepted_tokens"

# metrics, and those of their attributes that no convention names


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. ``bounds`` are the upper bounds of a histogram's buckets, in ``unit``."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """As it is scraped; a histogram's series are this with ``_bucket``, ``_sum`` and ``_count``."""
        name = self.name.replace(".", "_")
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        return f"{name}{unit}{'_total' if self.kind == 'counter' else ''}"


ATTRIBUTE_LANE: Final = "lane"
ATTRIBUTE_MODEL: Final = "model"
ATTRIBUTE_DRAFT_MODEL: Final = "draft_model"
ATTRIBUTE_OUTCOME: Final = "outcome"
"""``ok``, ``cancelled`` (the client left), ``rejected`` (429, 503), ``invalid`` (4xx), ``failed`` (ours)."""
ATTRIBUTE_REASON: Final = "reason"
"""Of an answer why it ended, otherwise the error's code."""
ATTRIBUTE_CODE: Final = "code"
"""Why a lane turned a request away: the code of its error."""
ATTRIBUTE_TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105
"""``input`` or ``output``."""
ATTRIBUTE_SIGNAL: Final = "signal"
"""``traces``, ``metrics`` or ``logs``."""
ATTRIBUTE_POSITION: Final = "position"
"""A draft token's place in its round, from 1 on."""
ATTRIBUTE_REQUESTED: Final = "requested"
ATTRIBUTE_ACTIVE: Final = "active"
ATTRIBUTE_LATE: Final = "late"
"""Whether a step took longer than it should: ``true`` or ``false``."""

NO_LANE: Final = "none"
NO_MODEL: Final = "none"
"""Of a request that was refused before anyone knew which it wants."""
NO_DRAFT: Final = "none"

_PAIR: Final = (ATTRIBUTE_MODEL, ATTRIBUTE_DRAFT_MODEL)
_SERVED: Final = (OPERATION_NAME, PROVIDER_NAME, REQUEST_MODEL, LANE)


def _counter(name: str, unit: str, description: str, *attributes: str) -> Metric:
    return Metric(name=name, kind="counter", unit=unit, description=description, attributes=attributes)


def _gauge(name: str, unit: str, description: str, *attributes: str) -> Metric:
    return Metric(name=name, kind="gauge", unit=unit, description=description, attributes=attributes)


def _seconds(name: str, description: str, attributes: tuple[str, ...], *bounds: float) -> Metric:
    return Metric(name=name, kind="histogram", unit="s", description=description, attributes=attributes, bounds=bounds)


DRAFT_ACCEPTED: Final = _counter("lmx_spec_draft_accepted", "{token}", "Draft tokens that the target took.", *_PAIR)
DRAFT_REJECTED: Final = _counter("lmx_spec_draft_rejected", "{token}", "Draft tokens that the target refused.", *_PAIR)
DRAFT_IGNORED: Final = _counter("lmx_spec_draft_ignored", "{token}", "Draft tokens never compared.", *_PAIR)
# No unit: "1" would make Prometheus' name end in ratio twice.
ACCEPTANCE: Final = _gauge(
    *("lmx_spec_acceptance_ratio", "", "Accepted share of the compared draft tokens, over the window of the gate."),
    *_PAIR,
)
DRAFT_PROPOSED: Final = _counter(
    "opta.spec.draft.proposed", "{token}", "Draft tokens: accepted, rejected and ignored.", *_PAIR
)
ROUNDS: Final = _counter("opta.spec.rounds", "{round}", "Passes of the target over draft tokens.", *_PAIR)
LOOKUP_ROUNDS: Final = _counter("opta.spec.lookup.rounds", "{round}", "Of the rounds, prompt lookup's.", *_PAIR)
LOOKUP_PROPOSED: Final = _counter(
    "opta.spec.lookup.proposed", "{token}", "Of the draft tokens, prompt lookup's.", *_PAIR
)
LOOKUP_ACCEPTED: Final = _counter(
    "opta.spec.lookup.accepted", "{token}", "Of the accepted draft tokens, prompt lookup's.", *_PAIR
)
POSITION_COMPARED: Final = _counter(
    "opta.spec.position.compared",
    "{token}",
    "Draft tokens compared, by place in the round.",
    *_PAIR,
    ATTRIBUTE_POSITION,
)
POSITION_ACCEPTED: Final = _counter(
    "opta.spec.position.accepted",
    "{token}",
    "Draft tokens accepted, by place in the round.",
    *_PAIR,
    ATTRIBUTE_POSITION,
)
SPECULATION: Final = _counter(
    *("opta.spec.requests", "{request}", "Requests by whether they speculated, and why."),
    *(*_PAIR, ATTRIBUTE_REQUESTED, ATTRIBUTE_ACTIVE, ATTRIBUTE_REASON),
)
LOW_ACCEPTANCE: Final = _gauge(
    "opta.spec.low_acceptance", "", "1 while a pair does not speculate because too little was accepted.", *_PAIR
)

# The bounds of these three are the conventions'.
REQUEST_DURATION: Final = _seconds(
    *("gen_ai.server.request.duration", "From a request's arrival to its end.", (*_SERVED, ERROR_TYPE)),
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
)
TIME_TO_FIRST_TOKEN: Final = _seconds(
    *("gen_ai.server.time_to_first_token", "From a request's arrival to its first token.", _SERVED),
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
TIME_PER_OUTPUT_TOKEN: Final = _seconds(
    *("gen_ai.server.time_per_output_token", "Mean time of a token after the first.", _SERVED),
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
# A wait is as short as one step and as long as a queue_timeout.
QUEUE_DURATION: Final = _seconds(
    *("opta.lane.queue.duration", "Wait for a slot, of requests that got one.", (ATTRIBUTE_LANE,)),
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)

REQUESTS: Final = _counter(
    *("opta.router.requests", "{request}", "Requests that are over."),
    *(ATTRIBUTE_LANE, ATTRIBUTE_MODEL, ATTRIBUTE_OUTCOME, ATTRIBUTE_REASON),
)
TOKENS: Final = _counter(
    *("opta.router.tokens", "{token}", "Tokens of prompts and answers, those under way included."),
    *(ATTRIBUTE_LANE, ATTRIBUTE_MODEL, ATTRIBUTE_TOKEN_TYPE),
)
QUEUE_DEPTH: Final = _gauge("opta.lane.queue.depth", "{request}", "Requests that wait for a slot.", ATTRIBUTE_LANE)
REQUESTS_ACTIVE: Final = _gauge("opta.lane.requests.active", "{request}", "Requests that have a slot.", ATTRIBUTE_LANE)
# No unit: "1" would make it a ratio for Prometheus, and weights are not of one whole.
WEIGHT: Final = _gauge("opta.lane.weight", "", "Share of device time while both lanes have work.", ATTRIBUTE_LANE)
DEVICE_TIME: Final = _counter("opta.lane.device_time", "s", "Device time that the lane's steps took.", ATTRIBUTE_LANE)
BOUNDED_STEPS: Final = _counter(
    "opta.lane.steps.bounded", "{step}", "Steps beside the other lane, by max_step_ms.", ATTRIBUTE_LANE, ATTRIBUTE_LATE
)
REJECTIONS: Final = _counter(
    "opta.lane.rejections", "{request}", "Requests that were turned away.", ATTRIBUTE_LANE, ATTRIBUTE_CODE
)
SPILLS: Final = _counter(
    *("opta.lane.spills", "{request}", "Requests that another lane took for this full one."),
    *(ATTRIBUTE_LANE, ATTRIBUTE_CODE),
)
RESTARTS: Final = _counter("opta.host.restarts", "{restart}", "Hosts that were lost.")
RESUMED_REQUESTS: Final = _counter(
    "opta.requests.resumed", "{request}", "Times that a request went to another host, whose first had died."
)
HOST_READY: Final = _gauge("opta.host.ready", "", "1 if requests are taken, else 0.")
HOST_MEMORY: Final = _gauge("opta.host.memory", "By", "Memory of the device that the host uses.")
MODEL_MEMORY: Final = _gauge(
    "opta.model.memory", "By", "What a resident model takes: weights, and room for its caches.", ATTRIBUTE_MODEL
)
PROMPT_CACHE_HITS: Final = _counter(
    "opta.prompt_cache.hits", "{request}", "Prompts whose beginning was known.", ATTRIBUTE_MODEL
)
PROMPT_CACHE_MISSES: Final = _counter(
    "opta.prompt_cache.misses", "{request}", "Prompts of which nothing was known.", ATTRIBUTE_MODEL
)
PROMPT_CACHE_REUSED: Final = _counter(
    "opta.prompt_cache.reused_tokens", "{token}", "Tokens of prompts that were known.", ATTRIBUTE_MODEL
)
PROMPT_CACHE_EVICTIONS: Final = _counter(
    "opta.prompt_cache.evictions", "{entry}", "Prompt caches that made room.", ATTRIBUTE_MODEL
)
PROMPT_CACHE_MEMORY: Final = _gauge("opta.prompt_cache.memory", "By", "What prompt caches take.", ATTRIBUTE_MODEL)
RELOADS: Final = _counter("opta.config.reloads", "{reload}", "Reloads of the configuration.", ATTRIBUTE_OUTCOME)
DROPPED: Final = _counter(
    "opta.telemetry.dropped", "{item}", "Spans, metric points and log lines that were lost.", ATTRIBUTE_SIGNAL
)

METRICS: Final = (
    *(DRAFT_ACCEPTED, DRAFT_REJECTED, DRAFT_IGNORED, ACCEPTANCE),
    *(DRAFT_PROPOSED, ROUNDS, SPECULATION, LOW_ACCEPTANCE),
    *(LOOKUP_ROUNDS, LOOKUP_PROPOSED, LOOKUP_ACCEPTED, POSITION_COMPARED, POSITION_ACCEPTED),
    *(REQUEST_DURATION, TIME_TO_FIRST_TOKEN, TIME_PER_OUTPUT_TOKEN, QUEUE_DURATION),
    *(REQUESTS, TOKENS),
    *(QUEUE_DEPTH, REQUESTS_ACTIVE, WEIGHT, DEVICE_TIME, BOUNDED_STEPS, REJECTIONS, SPILLS),
    *(PROMPT_CACHE_HITS, PROMPT_CACHE_MISSES, PROMPT_CACHE_REUSED, PROMPT_CACHE_EVICTIONS, PROMPT_CACHE_MEMORY),
    *(RESTARTS, RESUMED_REQUESTS, HOST_READY, HOST_MEMORY, MODEL_MEMORY, RELOADS, DROPPED),
)
"""All of them. The Prometheus name follows by translation."""
