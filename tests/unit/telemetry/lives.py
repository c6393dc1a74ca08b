"""A request and its answer, as the dispatcher would tell them."""

from lanes import wire
from opta_router.request import Ending, GenerationRequest, OptaReport, SamplingParams, SpeculativeReport, Usage
from opta_router.telemetry import HttpRequest
from policies.classify import Classification
from policies.schema import ClientConfig, PresetConfig

ROUTE = "/v1/chat/completions"
CANARY = "canary-in-the-prompt"

REQUEST = GenerationRequest(
    operation="chat",
    model="auto",
    prompt=wire.ChatPrompt((wire.ChatMessage("user", CANARY),)),
    # Whole numbers where the conventions have doubles: a client writes 1, not 1.0.
    sampling=SamplingParams(temperature=1, top_p=1, top_k=40, seed=7, presence_penalty=0, frequency_penalty=1),
    max_tokens=64,
    stop=("END", "STOP"),
    stream=True,
    user=CANARY,
    metadata={"note": CANARY},
)

VERDICT = Classification(
    model="opta-tiny",
    lane="auto",
    route="hint:x-opta-lane",
    hint="x-opta-lane=auto",
    preset=PresetConfig(name="chat", model="opta-tiny", system=CANARY),
    client=ClientConfig(name="openclaw", key_sha256="0" * 64),
)

SPECULATED = SpeculativeReport(
    requested=True,
    active=True,
    reason="approved",
    telemetry="native",
    rounds=41,
    proposed=164,
    accepted=118,
    rejected=43,
    ignored=3,
    acceptance_ratio=1,
)

NOT_SPECULATED = SpeculativeReport(requested=True, active=False, reason="lane")


def no_usage():
    return Usage(prompt_tokens=0, completion_tokens=0)


def ending(speculative=SPECULATED, reason="stop", resumed=0):
    return Ending(
        wire.Finished("r-1", reason, prompt_tokens=12, completion_tokens=34, cached_tokens=5),
        OptaReport(
            lane="interactive",
            route="auto:room",
            queue_ms=3,
            ttft_ms=21.7,
            resumed=resumed,
            speculative=speculative,
        ),
    )


def begin(tracing, **headers):
    known = {name.replace("_", "-"): value for name, value in headers.items()}
    return tracing.request(HttpRequest("POST", ROUTE, known, client_address="192.0.2.7", http_version="2"))


def classify(trace, verdict=VERDICT, request=REQUEST):
    trace.classified(request, verdict, request_id="r-1", sub_client="main", draft_model="embedded:draft")


def to_first_token(trace):
    classify(trace)
    trace.queued()
    trace.admitted("interactive", "auto:room")
    trace.dispatched(no_usage)
    trace.first_token()


def usage(ending):
    """What its host's last word says."""
    return Usage(prompt_tokens=ending.finished.prompt_tokens, completion_tokens=ending.finished.completion_tokens)
