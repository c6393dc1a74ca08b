"""Answers and errors in OpenAI's shapes, read back with the official SDK's own types."""

import json

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from lanes import wire
from opta_router import errors
from opta_router.dialects import openai
from opta_router.request import Ending, OptaReport, SpeculativeReport
from policies.schema import Config, ModelConfig, PresetConfig

TEXT = 'print("hé\n")\x00\u2028 \N{PILE OF POO}'
COUNTERS = wire.SpecCounters(rounds=3, proposed=9, accepted=5, rejected=3, ignored=1)
ENDING = Ending(
    wire.Finished("r", "length", prompt_tokens=4, completion_tokens=6, cached_tokens=2, speculative=COUNTERS),
    OptaReport(
        lane="interactive",
        route="default",
        queue_ms=0.5,
        ttft_ms=2.5,
        resumed=0,
        speculative=SpeculativeReport(requested=True, active=True, reason="approved", telemetry="native", rounds=3),
    ),
)


def facts(operation="chat", **changes):
    values = {"id": "x-1", "created": 1700000000, "model": "opta-tiny", "system_fingerprint": "f", **changes}
    return openai.AnswerFacts(operation=operation, **values)


def strict(kind, data):
    """Parse as the SDK's type, which must know every value that it names."""
    return kind.model_validate_json(data, strict=True)


def events(data):
    """The `data` of each event of a stream."""
    assert data.endswith(b"\n\n")
    lines = data.removesuffix(b"\n\n").split(b"\n\n")
    assert all(line.startswith(b"data: ") and b"\n" not in line for line in lines)
    return [line.removeprefix(b"data: ") for line in lines]


def streamed(the_facts, *pieces):
    stream = openai.StreamEncoder(the_facts)
    return events(stream.start() + b"".join(map(stream.delta, pieces)) + stream.finish(ENDING))


@pytest.mark.parametrize(("operation", "kind"), [("chat", ChatCompletion), ("text_completion", Completion)])
def test_a_whole_answer_parses_with_the_official_types(operation, kind):
    answer = strict(kind, openai.encode(facts(operation, service_tier="flex"), TEXT, ENDING))
    choice = answer.choices[0]
    assert (choice.message.content if operation == "chat" else choice.text) == TEXT
    assert (choice.finish_reason, choice.index) == ("length", 0)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 6, 10)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    details = answer.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (5, 3)
    assert answer.opta["speculative"] == {
        "requested": True,
        "active": True,
        "reason": "approved",
        "telemetry": "native",
        "rounds": 3,
    }


@pytest.mark.parametrize(("operation", "kind"), [("chat", ChatCompletionChunk), ("text_completion", Completion)])
def test_every_chunk_parses_and_together_they_are_the_text(operation, kind):
    *chunks, done = streamed(facts(operation), TEXT, "", "\\u0000", '"')
    parsed = [strict(kind, chunk) for chunk in chunks if operation == "chat"] or [json.loads(chunk) for chunk in chunks]
    if operation == "chat":
        pieces = [chunk.choices[0].delta.content or "" for chunk in parsed]
        assert parsed[0].choices[0].delta.role == "assistant"
        reasons = [chunk.choices[0].finish_reason for chunk in parsed]
    else:
        pieces = [chunk["choices"][0]["text"] for chunk in parsed]
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in parsed]
    assert "".join(pieces) == TEXT + "\\u0000" + '"'
    assert [reason for reason in reasons if reason] == ["length"]
    assert reasons[-1] == "length"
    assert done == b"[DONE]"


def test_usage_is_its_own_last_chunk_when_asked_for_and_opta_rides_on_the_finishing_one():
    *chunks, _ = map(json.loads, streamed(facts(include_usage=True), "x")[:-1])
    finishing = chunks[-1]
    *_, usage = map(json.loads, streamed(facts(include_usage=True), "x")[:-1])
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 10
    assert finishing["opta"]["lane"] == "interactive"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert all("usage" not in json.loads(chunk) for chunk in streamed(facts(), "x")[:-1])


@pytest.mark.parametrize("operation", ["chat", "text_completion"])
def test_a_chunk_says_which_of_its_text_was_drafted_and_is_otherwise_as_any(operation):
    stream = openai.StreamEncoder(facts(operation))
    (marked,) = map(json.loads, events(stream.delta("a\u00e9\U0001f980b", ((0, 3),))))
    assert marked.pop("opta") == {"drafted": [[0, 3]]}
    (plain,) = map(json.loads, events(stream.delta("a\u00e9\U0001f980b")))
    assert marked == plain


def test_an_error_in_a_stream_has_the_usual_shape_and_no_done_follows():
    error = errors.EngineDied("gone", retry_after_s=5)
    (event,) = events(openai.StreamEncoder(facts()).error(error))
    assert json.loads(event) == json.loads(openai.render_error(error).body)


@pytest.mark.parametrize(
    ("error", "status", "kind", "header"),
    [
        (errors.InvalidRequest("invalid_value", "m", param="p"), 400, "invalid_request_error", None),
        (errors.InvalidKey("m"), 401, "authentication_error", (b"www-authenticate", b"Bearer")),
        (errors.NotFound("m"), 404, "not_found_error", None),
        (errors.ModelNotFound("m", param="model"), 404, "not_found_error", None),
        (errors.PresetNotFound("m"), 404, "not_found_error", None),
        (errors.MethodNotAllowed("m", allowed="POST"), 405, "invalid_request_error", (b"allow", b"POST")),
        (errors.UnsupportedMediaType("m"), 415, "invalid_request_error", None),
        (errors.QueueFull("m", retry_after_s=7), 429, "rate_limit_error", (b"retry-after", b"7")),
        (errors.DeadlineExceeded("m", retry_after_s=7), 503, "server_error", (b"retry-after", b"7")),
        (errors.Draining("m", retry_after_s=7), 503, "server_error", (b"retry-after", b"7")),
        (errors.EngineUnavailable("m", retry_after_s=7), 503, "server_error", (b"retry-after", b"7")),
        (errors.EngineDied("m", retry_after_s=7), 503, "server_error", (b"retry-after", b"7")),
        (errors.PoisonRequest("m"), 500, "server_error", (b"x-should-retry", b"false")),
        (errors.ModelUnavailable("m", retry_after_s=7), 503, "server_error", (b"retry-after", b"7")),
        (errors.Fault("m"), 500, "server_error", None),
        (errors.EngineFault("m"), 500, "server_error", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_status_and_openais_shape(error, status, kind, header):
    rendered = openai.render_error(error)
    assert rendered.status == status
    body = {"message": "m", "type": kind, "param": error.param, "code": error.code}
    assert json.loads(rendered.body) == {"error": body}
    assert rendered.headers == ((header,) if header else ())


def test_every_kind_of_error_has_a_code_of_its_own():
    kinds = _below(errors.RouterError)
    leaves = [kind for kind in kinds if not kind.__subclasses__()]
    codes = {kind.code for kind in leaves}
    assert len(codes) == len(leaves) > 10


def _below(kind):
    return [found for child in kind.__subclasses__() for found in (child, *_below(child))]


def test_the_model_list_names_models_aliases_and_presets():
    config = Config(
        models=(ModelConfig(name="m", target="t", draft="d", aliases=("auto",)),),
        presets=(PresetConfig(name="chat", model="auto", lane="interactive"),),
    )
    info = wire.ModelInfo("m", "t", "d", 2048, 100, 1, 1, 0.1)
    listed = json.loads(openai.encode_models(config, {"m": info}, 1700000000))
    entries = {model.id: model for model in map(Model.model_validate, listed["data"])}
    assert list(entries) == ["m", "auto", "chat"]
    assert {entry.opta["model"] for entry in entries.values()} == {"m"}
    assert entries["m"].opta["context_tokens"] == 2048
    assert entries["chat"].opta["lane"] == "interactive"
    one = openai.encode_model("auto", config, {}, 1700000000)
    assert json.loads(one)["opta"] == {"kind": "alias", "model": "m", "loaded": False, "draft": "d"}
    assert openai.encode_model("AUTO", config, {}, 1700000000) is None
