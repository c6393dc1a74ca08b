"""Every name that our traces and metrics use, in one place.

The GenAI conventions are still in development and their constants move between packages, so ours are written out.
``opta.*`` names are ours and public: once released, a name does not change meaning.
"""

from typing import Final

SERVICE_NAME: Final = "service.name"
SERVICE_VERSION: Final = "service.version"
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

# metrics, and their attributes

METRIC_DEVICE_TIME: Final = "opta.lane.device_time"
METRIC_QUEUE_DEPTH: Final = "opta.lane.queue.depth"
METRIC_REQUESTS_ACTIVE: Final = "opta.lane.requests.active"
METRIC_WEIGHT: Final = "opta.lane.weight"
METRIC_REJECTIONS: Final = "opta.lane.rejections"
METRIC_SPILLS: Final = "opta.lane.spills"
METRIC_RESTARTS: Final = "opta.host.restarts"
METRIC_RESUMED: Final = "opta.requests.resumed"
METRIC_SPEC_ACCEPTED: Final = "lmx_spec_draft_accepted"
METRIC_SPEC_REJECTED: Final = "lmx_spec_draft_rejected"
METRIC_SPEC_IGNORED: Final = "lmx_spec_draft_ignored"
METRIC_SPEC_ACCEPTANCE_RATIO: Final = "lmx_spec_acceptance_ratio"
METRIC_SPEC_PROPOSED: Final = "opta.spec.draft.proposed"
METRIC_SPEC_ROUNDS: Final = "opta.spec.rounds"
METRIC_SPEC_REQUESTS: Final = "opta.spec.requests"
METRIC_SPEC_LOW_ACCEPTANCE: Final = "opta.spec.low_acceptance"

ATTRIBUTE_LANE: Final = "lane"
ATTRIBUTE_CODE: Final = "code"
"""Why a lane turned a request away: the code of its error."""

ATTRIBUTE_MODEL: Final = "model"
ATTRIBUTE_DRAFT_MODEL: Final = "draft_model"
ATTRIBUTE_REQUESTED: Final = "requested"
ATTRIBUTE_ACTIVE: Final = "active"
ATTRIBUTE_REASON: Final = "reason"
