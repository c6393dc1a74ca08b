"""Facts of a request as span attributes. Pure. What is not known is left out, never zero.

A number's type is part of its name's meaning, because TraceQL compares by type: milliseconds and counts are ints;
seconds, ratios and sampling settings are floats, whatever the client's JSON had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from opta_router.request import Ending, GenerationRequest, OptaReport, SpeculativeReport
from opta_router.telemetry import names
from opta_router.telemetry.tracing import HttpRequest
from policies.classify import Classification

Value: TypeAlias = str | bool | int | float | Sequence[str]
Attributes: TypeAlias = dict[str, Value]


def of_http(http: HttpRequest) -> Attributes:
    """The SERVER span's, known when it starts. The query is never recorded: people put keys there."""
    return _known(
        {
            names.HTTP_REQUEST_METHOD: http.method,
            names.HTTP_ROUTE: http.route,
            names.URL_PATH: http.route,
            names.URL_SCHEME: http.scheme,
            names.CLIENT_ADDRESS: http.client_address,
            names.NETWORK_PROTOCOL_VERSION: http.http_version,
            names.USER_AGENT_ORIGINAL: http.headers.get("user-agent"),
        }
    )


def of_inference(
    request: GenerationRequest,
    verdict: Classification,
    *,
    request_id: str,
    sub_client: str,
    draft_model: str | None,
) -> Attributes:
    """The CLIENT span's, known when it starts. Settings are those that the client sent, without a preset's."""
    sampling = request.sampling
    return _known(
        {
            names.OPERATION_NAME: request.operation,
            names.PROVIDER_NAME: names.PROVIDER,
            names.REQUEST_MODEL: request.model or verdict.model,
            names.RESPONSE_MODEL: verdict.model,
            names.REQUEST_ID: request_id,
            names.REQUEST_STREAM: request.stream,
            names.REQUEST_MAX_TOKENS: request.max_tokens,
            names.REQUEST_TEMPERATURE: _float(sampling.temperature),
            names.REQUEST_TOP_P: _float(sampling.top_p),
            # A double in the conventions.
            names.REQUEST_TOP_K: _float(sampling.top_k),
            names.REQUEST_SEED: _int64(sampling.seed),
            names.REQUEST_PRESENCE_PENALTY: _float(sampling.presence_penalty),
            names.REQUEST_FREQUENCY_PENALTY: _float(sampling.frequency_penalty),
            names.REQUEST_STOP_SEQUENCES: request.stop or None,
            names.LANE: verdict.lane,
            names.LANE_REASON: verdict.route,
            names.LANE_HINT: verdict.hint,
            names.PRESET: verdict.preset.name if verdict.preset is not None else None,
            names.CLIENT: verdict.client.name if verdict.client is not None else None,
            names.SUB_CLIENT: sub_client or None,
            names.SPEC_DRAFT_MODEL: draft_model,
        }
    )


def of_ending(ending: Ending) -> Attributes:
    """What the host reported."""
    finished = ending.finished
    return {
        names.RESPONSE_FINISH_REASONS: (finished.reason,),
        names.USAGE_INPUT_TOKENS: finished.prompt_tokens,
        names.USAGE_OUTPUT_TOKENS: finished.completion_tokens,
        names.USAGE_CACHE_READ_INPUT_TOKENS: finished.cached_tokens,
        **of_report(ending.opta),
    }


def of_report(report: OptaReport) -> Attributes:
    """What the answer's ``opta`` object says, so that both say the same."""
    return {
        names.LANE: report.lane,
        names.LANE_REASON: report.route,
        names.RESUMED: report.resumed,
        **of_latencies(report.queue_ms, report.ttft_ms),
        **of_speculation(report.speculative),
    }


def of_latencies(queue_ms: float | None, ttft_ms: float | None) -> Attributes:
    """The same times twice: whole milliseconds to query, seconds as other servers have them."""
    attributes: Attributes = {}
    if queue_ms is not None:
        attributes[names.QUEUE_MS] = round(queue_ms)
        attributes[names.LATENCY_TIME_IN_QUEUE] = queue_ms / 1e3
    if ttft_ms is not None:
        attributes[names.TTFT_MS] = round(ttft_ms)
        attributes[names.LATENCY_TIME_TO_FIRST_TOKEN] = ttft_ms / 1e3
    return attributes


def of_speculation(report: SpeculativeReport) -> Attributes:
    """The per-request speculative markers, and the counts where speculation was active."""
    return _known(
        {
            names.SPEC_REQUESTED: report.requested,
            names.SPEC_ACTIVE: report.active,
            names.SPEC_REASON: report.reason,
            names.SPEC_TELEMETRY: report.telemetry,
            names.SPEC_ROUNDS: report.rounds,
            names.SPEC_PROPOSED_TOKENS: report.proposed,
            names.SPEC_ACCEPTED_TOKENS: report.accepted,
            names.SPEC_REJECTED_TOKENS: report.rejected,
            names.SPEC_IGNORED_TOKENS: report.ignored,
            names.SPEC_ACCEPTANCE_RATIO: _float(report.acceptance_ratio),
            names.SPEC_PROPOSER: report.proposer,
            names.SPEC_MEAN_ACCEPTED_TOKENS: _float(report.mean_accepted_tokens),
        }
    )


def _known(attributes: Mapping[str, Value | None]) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _int64(value: int | None) -> int | None:
    """OTLP integers have 64 bits; the exporter logs a traceback for any that has more, and a seed is a client's."""
    return value if value is not None and -(2**63) <= value < 2**63 else None
