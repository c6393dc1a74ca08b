"""Prompts and answers in traces, where an operator asks for them, and nowhere else."""

import json

import msgspec
import pytest

from lanes import wire
from opta_router.telemetry import content, start_tracing
from policies.schema import PresetConfig, TelemetryConfig
from tests.unit.telemetry import lives

ANSWER = "an answer"
PLAIN = msgspec.structs.replace(lives.VERDICT, preset=None)


def sent(collector, request, verdict=PLAIN, text=ANSWER, **settings):
    """The CLIENT span's attributes."""
    tracing = start_tracing(TelemetryConfig(otlp_endpoint=collector.endpoint, **settings))
    trace = lives.begin(tracing)
    lives.classify(trace, verdict, request)
    trace.finished(lives.ending(), text if trace.records_content else "")
    trace.responded(200)
    assert tracing.shutdown()
    return next(span.attributes for span in collector.spans if span.kind == "CLIENT")


def test_messages_stand_on_the_client_span_as_the_conventions_have_them(collector):
    found = sent(collector, lives.REQUEST, lives.VERDICT, record_content=True)
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": lives.CANARY}]}
    ]
    assert json.loads(found["gen_ai.system_instructions"]) == [{"type": "text", "content": lives.CANARY}]
    assert json.loads(found["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": ANSWER}], "finish_reason": "stop"}
    ]


def test_they_are_nowhere_unless_asked_for(collector):
    found = sent(collector, lives.REQUEST, lives.VERDICT)
    assert not [name for name in found if "messages" in name or "instructions" in name]


def test_a_text_prompt_is_a_users_and_token_ids_are_no_text(collector):
    text = msgspec.structs.replace(lives.REQUEST, prompt=wire.TextPrompt("def f("))
    asked = json.loads(sent(collector, text, record_content=True)["gen_ai.input.messages"])
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": "def f("}]}]
    tokens = msgspec.structs.replace(lives.REQUEST, prompt=wire.TokenPrompt((1, 2)))
    assert content.of_prompt(tokens, PLAIN).attributes() == {}


@pytest.mark.parametrize("chars", [content.MAX_CONTENT_CHARS, 10 * content.MAX_CONTENT_CHARS])
def test_what_is_too_long_is_cut_the_oldest_first_and_stays_json(collector, chars):
    newest = "n" * (content.MAX_CONTENT_CHARS - 10)
    messages = (wire.ChatMessage("user", "forgotten"), wire.ChatMessage("user", "o" * chars, "ann"))
    request = msgspec.structs.replace(
        lives.REQUEST, prompt=wire.ChatPrompt((*messages, wire.ChatMessage("assistant", newest)))
    )
    found = sent(collector, request, text="a" * chars * 2, record_content=True)
    older, last = json.loads(found["gen_ai.input.messages"])
    assert (older["name"], older["parts"][0]["content"]) == ("ann", "o" * 10 + content.CUT)
    assert last["parts"][0]["content"] == newest
    (answer,) = json.loads(found["gen_ai.output.messages"])
    assert answer["parts"][0]["content"] == "a" * content.MAX_CONTENT_CHARS + content.CUT


def test_a_preset_without_a_system_prompt_instructs_nothing():
    verdict = msgspec.structs.replace(PLAIN, preset=PresetConfig(name="chat", model="opta-tiny"))
    assert content.of_prompt(lives.REQUEST, verdict).system == ()
