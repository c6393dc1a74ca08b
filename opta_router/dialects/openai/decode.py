"""OpenAI request bodies to the canonical request.

Every parameter of OpenAI's reference is either taken, or refused by name unless its value changes nothing. What other
servers add and clients are used to (``top_k``, ``min_p``, ``repetition_penalty``, ``num_draft_tokens``) is taken, too.
"""

from __future__ import annotations

from collections.abc import Collection
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from lanes import wire
from opta_router.dialects import body as json_body
from opta_router.dialects.body import Neutral
from opta_router.errors import InvalidRequest
from opta_router.request import GenerationRequest, Operation, SamplingParams

MAX_STOPS: Final = 16
MAX_MESSAGES: Final = 10_000
MAX_TOOLS: Final = 128

StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
TokenCount: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
ShortText: TypeAlias = Annotated[str, Meta(max_length=512)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """``stream_options``. ``include_drafted`` is ours: chunks say which of their text the draft model proposed."""

    include_usage: bool | None = None
    include_drafted: bool | None = None
    include_obfuscation: bool | None = None


class _Common(msgspec.Struct, kw_only=True):
    """What both operations take."""

    model: Annotated[str, Meta(max_length=512)]
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    num_draft_tokens: Annotated[int, Meta(ge=0, le=64)] | None = None
    service_tier: ShortText | None = None
    user: ShortText | None = None
    metadata: Annotated[dict[str, ShortText], Meta(max_length=16)] | None = None


class ContentPart(msgspec.Struct):
    """One part of a message. Only ``text`` parts are supported; the others' own fields are not looked at."""

    type: Annotated[str, Meta(max_length=60)]
    text: str | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message. The last fields are those of OpenAI's answers, which clients send back: empty, they do no harm."""

    role: Annotated[str, Meta(max_length=60)]
    content: str | list[ContentPart] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    function_call: dict[str, Any] | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    annotations: list[Any] | None = None


class ChatBody(_Common, kw_only=True):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None


class CompletionBody(_Common, kw_only=True):
    """``POST /v1/completions``."""

    prompt: str | Annotated[list[TokenId | str], Meta(min_length=1)]


Body = TypeVar("Body", ChatBody, CompletionBody)

_ROLES: Final = MappingProxyType({"system": "system", "developer": "system", "user": "user", "assistant": "assistant"})
_EMPTY_ONLY: Final = ("tool_calls", "tool_call_id", "function_call", "refusal", "audio", "annotations")

# Text that says who asks or how to cache: nothing in an answer depends on it.
_HARMLESS: Final = ("safety_identifier", "prompt_cache_key")

_UNSUPPORTED: Final = MappingProxyType(
    {
        "n": Neutral((1,)),
        "best_of": Neutral((1,)),
        "logprobs": Neutral((False,)),
        "top_logprobs": Neutral((0,)),
        "prompt_cache_options": Neutral(),
        "prompt_cache_retention": Neutral(),
        "min_tokens": Neutral((0,)),
        "ignore_eos": Neutral((False,)),
        "response_format": Neutral(({"type": "text"},)),
    }
)
_CHAT_UNSUPPORTED: Final = MappingProxyType(
    {
        **_UNSUPPORTED,
        "tool_choice": Neutral(("none", "auto")),
        "parallel_tool_calls": Neutral((True, False)),
        "functions": Neutral(([],)),
        "function_call": Neutral(("none", "auto")),
        "store": Neutral((False,)),
        "modalities": Neutral((["text"],)),
        "moderation": Neutral(),
        "audio": Neutral(),
        "prediction": Neutral(),
        "reasoning_effort": Neutral(("none",)),
        "verbosity": Neutral(("medium",)),
        "web_search_options": Neutral(),
        "chat_template_kwargs": Neutral(({},)),
    }
)
_COMPLETION_UNSUPPORTED: Final = MappingProxyType({**_UNSUPPORTED, "echo": Neutral((False,)), "suffix": Neutral(("",))})


def decode_chat(body: bytes, hint_fields: Collection[str] = ()) -> GenerationRequest:
    """A body of ``/v1/chat/completions``. ``hint_fields`` are the text fields that the configuration reads hints from.

    Raises:
        InvalidRequest: naming the parameter.
    """
    given, parsed = _decode(body, ChatBody, _CHAT_UNSUPPORTED, hint_fields)
    max_tokens = parsed.max_completion_tokens or parsed.max_tokens
    if parsed.max_tokens is not None and parsed.max_tokens != max_tokens:
        message = "max_tokens and max_completion_tokens differ; send one of them"
        raise InvalidRequest("invalid_value", message, param="max_tokens")
    messages = tuple(_message(index, message) for index, message in enumerate(parsed.messages))
    request = _request("chat", parsed, wire.ChatPrompt(messages), max_tokens, _hints(given, hint_fields))
    return msgspec.structs.replace(request, tools=True) if _offers_tools(given, parsed) else request


def _offers_tools(given: dict[str, msgspec.Raw], parsed: ChatBody) -> bool:
    """Whether the model is told of tools, which it then may not call."""
    if not parsed.tools:
        return False
    if "tool_choice" not in given or msgspec.json.decode(given["tool_choice"]) != "none":
        message = 'tools is not supported unless tool_choice is "none"; leave it out'
        raise InvalidRequest("unsupported_parameter", message, param="tools")
    return True


def decode_completion(body: bytes, hint_fields: Collection[str] = ()) -> GenerationRequest:
    """A body of ``/v1/completions``; see :func:`decode_chat`."""
    given, parsed = _decode(body, CompletionBody, _COMPLETION_UNSUPPORTED, hint_fields)
    hints = _hints(given, hint_fields)
    return _request("text_completion", parsed, _prompt(parsed.prompt), parsed.max_tokens, hints)


def _decode(
    body: bytes, kind: type[Body], unsupported: MappingProxyType[str, Neutral], hint_fields: Collection[str]
) -> tuple[dict[str, msgspec.Raw], Body]:
    given = json_body.fields(body)
    # Not `msgspec.structs.fields`: that resolves the annotations anew each time, which took half of a request's time.
    json_body.check_names(given, kind.__struct_encode_fields__, unsupported, {*hint_fields, *_HARMLESS})
    return given, json_body.decode(body, kind)


def _request(
    operation: Operation, parsed: _Common, prompt: wire.Prompt, max_tokens: int | None, hints: dict[str, str]
) -> GenerationRequest:
    options = _stream_options(parsed)
    return GenerationRequest(
        operation=operation,
        model=parsed.model,
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=SamplingParams(
            temperature=parsed.temperature,
            top_p=parsed.top_p,
            top_k=max(parsed.top_k, 0) if parsed.top_k is not None else None,  # vLLM's clients say -1 for "all"
            min_p=parsed.min_p,
            seed=parsed.seed,
            repetition_penalty=parsed.repetition_penalty,
            presence_penalty=parsed.presence_penalty,
            frequency_penalty=parsed.frequency_penalty,
            logit_bias=parsed.logit_bias or None,
        ),
        stop=(parsed.stop,) if isinstance(parsed.stop, str) else tuple(parsed.stop or ()),
        stream=bool(parsed.stream),
        include_usage=bool(options.include_usage),
        include_drafted=bool(options.include_drafted),
        num_draft_tokens=parsed.num_draft_tokens,
        user=parsed.user,
        metadata=parsed.metadata or {},
        service_tier=parsed.service_tier,
        hints=hints,
    )


def _stream_options(parsed: _Common) -> StreamOptions:
    options = parsed.stream_options
    if options is None:
        return StreamOptions()
    if not parsed.stream:
        message = "stream_options is only allowed when stream is true"
        raise InvalidRequest("invalid_value", message, param="stream_options")
    if options.include_obfuscation:
        message = "include_obfuscation is not supported; leave it out, or send false"
        raise InvalidRequest("unsupported_parameter", message, param="stream_options.include_obfuscation")
    return options


def _hints(given: dict[str, msgspec.Raw], hint_fields: Collection[str]) -> dict[str, str]:
    hints: dict[str, str] = {}
    for name in hint_fields:
        if name not in given:
            continue
        value = msgspec.json.decode(given[name])
        if isinstance(value, str):
            hints[name] = value
        elif value is not None:
            message = f"{name}: found {json_body.shown(value)}; allowed is a string"
            raise InvalidRequest("invalid_type", message, param=name)
    return hints


def _message(index: int, message: Message) -> wire.ChatMessage:
    at = f"messages[{index}]"
    role = _ROLES.get(message.role)
    if role is None:
        allowed = ", ".join(_ROLES)
        found = "tool" if message.role in ("tool", "function") else "another role"
        raise InvalidRequest("unsupported_value", f"{at}.role: found {found}; allowed is {allowed}", param=f"{at}.role")
    for name in _EMPTY_ONLY:
        if getattr(message, name):
            raise InvalidRequest("unsupported_parameter", f"{at}.{name} is not supported", param=f"{at}.{name}")
    if message.content is None:
        allowed = "a string or an array of text parts"
        raise InvalidRequest("invalid_type", f"{at}.content: found null; allowed is {allowed}", param=f"{at}.content")
    content = message.content if isinstance(message.content, str) else _joined(f"{at}.content", message.content)
    return wire.ChatMessage(role, content, message.name)


def _joined(at: str, parts: list[ContentPart]) -> str:
    if not parts:
        raise InvalidRequest("invalid_value", f"{at}: found an array of 0; allowed is at least one part", param=at)
    texts: list[str] = []
    for index, part in enumerate(parts):
        where = f"{at}[{index}]"
        if part.type != "text":
            found = ascii(part.type)[1:-1]
            message = f"{where}: {found} parts are not supported; allowed is text"
            raise InvalidRequest("unsupported_value", message, param=f"{where}.type")
        if part.text is None:
            raise InvalidRequest("missing_required_parameter", f"{where}.text is missing", param=f"{where}.text")
        texts.append(part.text)
    return "".join(texts)


def _prompt(prompt: str | list[int | str]) -> wire.Prompt:
    if isinstance(prompt, str):
        return wire.TextPrompt(prompt)
    token_ids = tuple(token for token in prompt if isinstance(token, int))
    if len(token_ids) == len(prompt):
        return wire.TokenPrompt(token_ids)
    if len(prompt) == 1:
        return wire.TextPrompt(str(prompt[0]))
    message = f"prompt: found an array of {len(prompt)} with strings in it; allowed is one prompt a request"
    raise InvalidRequest("unsupported_value", message, param="prompt")
