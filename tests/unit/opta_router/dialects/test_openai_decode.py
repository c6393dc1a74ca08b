"""OpenAI request bodies: what is taken, what is refused, and in which words."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from lanes import framing, wire
from opta_router.dialects import openai
from opta_router.errors import InvalidRequest
from opta_router.request import SamplingParams

CANARY = "canary-in-the-prompt"
CHAT = {"model": "m", "messages": [{"role": "user", "content": CANARY}]}
TEXT = {"model": "m", "prompt": CANARY}
DECODERS = pytest.mark.parametrize(("decode", "base"), [(openai.decode_chat, CHAT), (openai.decode_completion, TEXT)])


def chat(hint_fields=(), **fields):
    return openai.decode_chat(json.dumps({**CHAT, **fields}).encode(), hint_fields)


def text(hint_fields=(), **fields):
    return openai.decode_completion(json.dumps({**TEXT, **fields}).encode(), hint_fields)


def refused(decode, body, hint_fields=()):
    """The refusal of a body, which never repeats its prompt."""
    with pytest.raises(InvalidRequest) as caught:
        decode(body if isinstance(body, bytes) else json.dumps(body).encode(), hint_fields)
    assert CANARY not in caught.value.message
    return caught.value


# what is taken


@DECODERS
def test_every_sampling_parameter_arrives(decode, base):
    given_values = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 40,
        "min_p": 0.125,
        "seed": -7,
        "repetition_penalty": 1.5,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "logit_bias": {"5": -100, "6": 1.5},
    }
    request = decode(json.dumps({**base, **given_values}).encode())
    assert request.sampling == SamplingParams(**{**given_values, "logit_bias": {5: -100.0, 6: 1.5}})


@DECODERS
def test_everything_beside_the_sampling_arrives(decode, base):
    body = {
        **base,
        "max_tokens": 12,
        "stop": ["END", "STOP"],
        "stream": True,
        "stream_options": {"include_usage": True, "include_drafted": True},
        "num_draft_tokens": 0,
        "service_tier": "flex",
        "user": "u",
        "metadata": {"k": "v"},
    }
    request = decode(json.dumps(body).encode(), {"service_tier"})
    assert (request.model, request.max_tokens, request.stop) == ("m", 12, ("END", "STOP"))
    assert (request.stream, request.include_usage, request.num_draft_tokens) == (True, True, 0)
    assert request.include_drafted
    assert (request.service_tier, request.hints) == ("flex", {"service_tier": "flex"})
    assert (request.user, request.metadata) == ("u", {"k": "v"})


@DECODERS
def test_a_parameter_that_is_null_is_as_good_as_absent(decode, base):
    names = ["max_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "logit_bias", "user"]
    given_nulls = decode(json.dumps({**base, **dict.fromkeys(names)}).encode())
    assert given_nulls == decode(json.dumps(base).encode())


def test_a_seed_left_out_is_drawn_and_a_clients_is_kept():
    submissions = [chat(**fields).submission("r", "m", "interactive", None, 0) for fields in ({}, {}, {"seed": 3})]
    seeds = [submission.sampling.seed for submission in submissions]
    assert seeds[0] != seeds[1]
    assert seeds[2] == 3


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 7, "max_completion_tokens": 7}, 7),
        ({}, None),
    ],
)
def test_either_name_bounds_the_answers_tokens(fields, expected):
    assert chat(**fields).max_tokens == expected


def test_two_bounds_that_differ_are_refused():
    error = refused(openai.decode_chat, {**CHAT, "max_tokens": 5, "max_completion_tokens": 6})
    assert (error.code, error.param) == ("invalid_value", "max_tokens")


def test_one_stop_string_is_a_list_of_one():
    assert chat(stop="END").stop == ("END",)


def test_a_top_k_of_minus_one_means_all_as_vllms_clients_say_it():
    assert chat(top_k=-1).sampling.top_k == 0


def test_content_parts_are_joined_and_developers_are_the_system():
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": [], "annotations": []},
    ]
    assert chat(messages=messages).prompt == wire.ChatPrompt(
        (
            wire.ChatMessage("system", "be brief"),
            wire.ChatMessage("user", "ab", "ann"),
            wire.ChatMessage("assistant", "c"),
        )
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("x", wire.TextPrompt("x")),
        (["x"], wire.TextPrompt("x")),
        ([5, 6], wire.TokenPrompt((5, 6))),
        ("\N{PILE OF POO}\0", wire.TextPrompt("\N{PILE OF POO}\0")),
    ],
)
def test_a_prompt_may_be_text_a_list_of_one_text_or_tokens(prompt, expected):
    assert text(prompt=prompt).prompt == expected


def test_only_configured_fields_are_hints():
    assert text({"priority"}, priority="bulk", service_tier="flex").hints == {"priority": "bulk"}
    error = refused(openai.decode_completion, {**TEXT, "priority": 3}, {"priority"})
    assert (error.code, error.param) == ("invalid_type", "priority")
    assert refused(openai.decode_completion, {**TEXT, "priority": "bulk"}).code == "unknown_parameter"


# what is refused


@pytest.mark.parametrize(
    ("decode", "base", "params"),
    [
        (openai.decode_chat, CHAT, chat_create_params.CompletionCreateParamsNonStreaming),
        (openai.decode_completion, TEXT, completion_create_params.CompletionCreateParamsNonStreaming),
    ],
    ids=["chat", "completions"],
)
def test_every_parameter_of_the_official_sdk_is_known(decode, base, params):
    names = params.__required_keys__ | params.__optional_keys__
    assert len(names) > 15
    newer_than_us = set()
    for name in names - base.keys():
        try:
            decode(json.dumps({**base, name: None}).encode())
        except InvalidRequest as error:
            newer_than_us.add((error.code, name))
    assert not newer_than_us


CHANGES_THE_ANSWER = {
    "n": 2,
    "best_of": 2,
    "logprobs": True,
    "top_logprobs": 3,
    "response_format": {"type": "json_object"},
    "min_tokens": 4,
    "ignore_eos": True,
}
CHANGES_A_CHAT = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "store": True,
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "prediction": {"type": "content", "content": "x"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
}


@pytest.mark.parametrize(
    ("decode", "base", "name", "value"),
    [(openai.decode_chat, CHAT, *item) for item in {**CHANGES_THE_ANSWER, **CHANGES_A_CHAT}.items()]
    + [(openai.decode_completion, TEXT, *item) for item in {**CHANGES_THE_ANSWER, "echo": True, "suffix": "x"}.items()],
)
def test_what_would_change_the_answer_is_refused_by_name(decode, base, name, value):
    error = refused(decode, {**base, name: value})
    assert (error.code, error.param) == ("unsupported_parameter", name)
    assert name in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("logprobs", False),
        ("tools", []),
        ("tool_choice", "auto"),
        ("response_format", {"type": "text"}),
        ("store", False),
        ("safety_identifier", "s"),
    ],
)
def test_a_value_that_changes_nothing_is_accepted(name, value):
    assert chat(**{name: value}) == chat()


def test_one_is_not_true():
    assert refused(openai.decode_chat, {**CHAT, "n": True}).code == "unsupported_parameter"


@pytest.mark.parametrize(
    ("name", "said"),
    [("temprature", "did you mean temperature?"), ("max_token", "did you mean max_tokens?"), ("zzz", "zzz")],
)
def test_an_unknown_parameter_is_named_with_the_one_that_was_meant(name, said):
    error = refused(openai.decode_chat, {**CHAT, name: 1})
    assert (error.code, error.param) == ("unknown_parameter", name)
    assert error.message.endswith(said)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"max_tokens": "5"}, "invalid_type", "max_tokens"),
        ({"max_tokens": 10**30}, "invalid_value", "max_tokens"),
        ({"temperature": 2.1}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"min_p": 1.1}, "invalid_value", "min_p"),
        ({"seed": 0.5}, "invalid_type", "seed"),
        ({"seed": 2**63}, "invalid_value", "seed"),
        ({"stop": ["a", ""]}, "invalid_value", "stop[1]"),
        ({"stop": ["a"] * 17}, "invalid_value", "stop"),
        ({"stop": [5]}, "invalid_type", "stop[0]"),
        ({"stream": 1}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "unknown_parameter", "stream_options.usage"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "unsupported_parameter",
            "stream_options.include_obfuscation",
        ),
        ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias"),
        ({"num_draft_tokens": -1}, "invalid_value", "num_draft_tokens"),
        ({"metadata": {"k": 5}}, "invalid_type", "metadata"),
        ({"service_tier": ["flex"]}, "invalid_type", "service_tier"),
        ({"model": None}, "invalid_type", "model"),
        ({"model": "m" * 513}, "invalid_value", "model"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": CANARY}, "invalid_type", "messages"),
        ({"messages": [CANARY]}, "invalid_type", "messages[0]"),
        ({"messages": [{"content": CANARY}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": CANARY, "content": "x"}]}, "unsupported_value", "messages[0].role"),
        ({"messages": [{"role": "tool", "content": CANARY}]}, "unsupported_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": CANARY}}]}]},
            "unsupported_value",
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "missing_required_parameter",
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "weight": 1}]},
            "unknown_parameter",
            "messages[0].weight",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": CANARY}]}]},
            "unsupported_parameter",
            "messages[0].tool_calls",
        ),
    ],
)
def test_a_wrong_value_is_refused_at_its_place_with_a_stable_code(fields, code, param):
    error = refused(openai.decode_chat, {**CHAT, **fields})
    assert (error.code, error.param) == (code, param)
    assert error.message.startswith((param.removesuffix(".type"), "unknown parameter", "max_tokens", "include_"))


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        ([], "invalid_value", "prompt"),
        ({"text": CANARY}, "invalid_type", "prompt"),
        ([CANARY, CANARY], "unsupported_value", "prompt"),
        ([5, CANARY], "unsupported_value", "prompt"),
        ([-1], "invalid_value", "prompt[0]"),
        ([[5, 6]], "invalid_type", "prompt[0]"),
        (None, "invalid_type", "prompt"),
    ],
)
def test_a_prompt_that_is_not_one_prompt_is_refused(prompt, code, param):
    error = refused(openai.decode_completion, {**TEXT, "prompt": prompt})
    assert (error.code, error.param) == (code, param)


@pytest.mark.parametrize(
    ("decode", "base", "missing"),
    [
        (openai.decode_chat, CHAT, "model"),
        (openai.decode_chat, CHAT, "messages"),
        (openai.decode_completion, TEXT, "model"),
        (openai.decode_completion, TEXT, "prompt"),
    ],
)
def test_a_missing_parameter_is_named(decode, base, missing):
    body = {name: value for name, value in base.items() if name != missing}
    error = refused(decode, body)
    assert (error.code, error.param, error.message) == ("missing_required_parameter", missing, f"{missing} is missing")


NESTED = b"[" * 100_000


@DECODERS
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "m"} x',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"model": "\\udc00abcdef"}',
        NESTED,
        NESTED + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "m", "service_tier": ' + NESTED + b"]" * 100_000 + b"}",
        b'{"model": "m", "messages": ' + NESTED + b"]" * 100_000 + b"}",
        b'{"model": "m", "unheard_of": ' + NESTED + b"]" * 100_000 + b"}",
        b'{"model": "m", "response_format": ' + NESTED + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_what_is_not_json_or_nested_without_end_is_refused(decode, base, body):
    error = refused(decode, body, {"service_tier"})
    assert (error.code, error.param) == ("invalid_json", None)


@DECODERS
@pytest.mark.parametrize("body", [[], "x", 5, None])
def test_json_that_is_no_object_is_refused(decode, base, body):
    error = refused(decode, body)
    assert (error.code, error.param) == ("invalid_type", None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "max_tokens",
        "stop",
        "stream",
        "stream_options",
        "logit_bias",
        "seed",
        "metadata",
        "service_tier",
        "temperature",
        "n",
        "tools",
        "response_format",
        "\x00",
        "unheard_of",
    ]
)


@DECODERS
@given(fields=st.dictionaries(NAMES, JSON, max_size=3))
def test_whatever_json_comes_the_answer_is_a_request_or_a_refusal(decode, base, fields):
    body = json.dumps({**base, **fields}).encode()
    try:
        request = decode(body, {"service_tier"})
    except InvalidRequest:
        refused(decode, body, {"service_tier"})
    else:
        # What was taken must fit on the wire to a host.
        framing.encode(request.submission("r", "m", "interactive", None, 0))


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "tools"),
    [({"tools": [TOOL], "tool_choice": "none"}, True), ({"tools": [], "tool_choice": "auto"}, False), ({}, False)],
)
def test_tools_that_must_not_be_called_are_taken(fields, tools):
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    assert openai.decode_chat(json.dumps(body).encode()).tools is tools


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}])
def test_tools_that_might_be_called_are_refused_by_name(choice):
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [TOOL], **choice}
    with pytest.raises(InvalidRequest) as refusal:
        openai.decode_chat(json.dumps(body).encode())
    assert (refusal.value.code, refusal.value.param) == ("unsupported_parameter", "tools")
