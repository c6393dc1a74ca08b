"""Requests that cannot be answered: each a clear error of the right status, and the service still serves."""

import httpx
import openai
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CANARY = "canary-in-the-prompt"
MESSAGES = [{"role": "user", "content": CANARY}]
MIB = 1024 * 1024


@pytest.fixture
def still_serves(pair):
    """Whatever the test did, the next request is answered."""
    yield
    answer = pair.post(TEXT, {"model": "auto", "prompt": "def f(", "max_tokens": 1})
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 1)


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        (CHAT, b"{", 400, "invalid_json", None),
        (CHAT, b"", 400, "invalid_json", None),
        (CHAT, b"[" * 100_000, 400, "invalid_json", None),
        (TEXT, b'{"model": "auto", "prompt": "\xff\xfe"}', 400, "invalid_json", None),
        (TEXT, b'{"model": "auto", "prompt": "\\ud800"}', 400, "invalid_json", None),
        (CHAT, {"model": "auto", "messages": MESSAGES, "temperature": "hot"}, 400, "invalid_type", "temperature"),
        (CHAT, {"model": "auto", "messages": MESSAGES, "max_tokens": -1}, 400, "invalid_value", "max_tokens"),
        (CHAT, {"model": "auto", "messages": []}, 400, "invalid_value", "messages"),
        (CHAT, {"model": "auto"}, 400, "missing_required_parameter", "messages"),
        (CHAT, {"model": "auto", "messages": MESSAGES, "tools": [{}]}, 400, "unsupported_parameter", "tools"),
        (CHAT, {"model": "auto", "messages": MESSAGES, "n": 2}, 400, "unsupported_parameter", "n"),
        (CHAT, {"model": "auto", "messages": MESSAGES, "max_tokns": 2}, 400, "unknown_parameter", "max_tokns"),
        (CHAT, {"model": "gpt-4o", "messages": MESSAGES}, 404, "model_not_found", "model"),
        (TEXT, {"model": "Auto", "prompt": CANARY}, 404, "model_not_found", "model"),
        (TEXT, {"model": "../target", "prompt": CANARY}, 404, "model_not_found", "model"),
        (TEXT, {"model": "auto", "prompt": ""}, 400, "invalid_prompt", "prompt"),
        (TEXT, {"model": "auto", "prompt": [10**9]}, 400, "invalid_prompt", "prompt"),
        (TEXT, {"model": "auto", "prompt": f"{CANARY} " * 4000}, 400, "context_length_exceeded", "prompt"),
        (
            TEXT,
            {"model": "auto", "prompt": f"{CANARY} " * 4000, "stream": True},
            400,
            "context_length_exceeded",
            "prompt",
        ),
        (TEXT, {"model": "auto", "prompt": "x" * 5 * MIB}, 413, "body_too_large", None),
        ("/v1/embeddings", {"model": "auto", "input": "x"}, 404, "not_found", None),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str | int) else None,
)
def test_a_bad_request_is_refused_in_openais_shape(pair, path, body, status, code, param):
    answer = pair.post(path, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    assert CANARY not in answer.text


@pytest.mark.usefixtures("still_serves")
def test_the_sdk_raises_its_own_classes(pair):
    with pair.sdk() as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model="auto", messages=[], max_tokens=5)
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    assert (bad.value.code, bad.value.param, bad.value.type) == ("invalid_value", "messages", "invalid_request_error")
    assert "opta-tiny" in unknown.value.message


@pytest.mark.usefixtures("still_serves")
@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""])
def test_only_json_is_taken(pair, content_type):
    answer = pair.post(TEXT, {"model": "auto", "prompt": "x"}, content_type=content_type)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_charset_beside_the_content_type_does_no_harm(pair):
    body = {"model": "auto", "prompt": "def f(", "max_tokens": 1}
    assert pair.post(TEXT, body, content_type="Application/JSON; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("get", CHAT, "POST"), ("get", TEXT, "POST"), ("post", "/v1/models", "GET")]
)
def test_another_method_is_told_which_one_the_path_takes(pair, method, path, allowed):
    answer = pair.get(path) if method == "get" else pair.post(path, {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert allowed in answer.headers["allow"]


def test_an_unknown_path_is_a_404_in_the_same_shape(pair):
    answer = pair.get("/v2/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", TEXT, {"host": "elsewhere.example"}, 421),
        ("POST", TEXT, {"origin": "https://elsewhere.example"}, 403),
        ("POST", TEXT, {"content-encoding": "gzip"}, 415),
        ("POST", TEXT, {}, 413),
        ("GET", TEXT, {}, 405),
        ("DELETE", "/v1/models", {}, 405),
        ("GET", "/v2/nothing", {}, 404),
        ("PATCH", "/admin/lanes/turbo", {"content-type": "application/json"}, 404),
        ("GET", "/healthz", {}, 200),
        ("GET", "/admin/lanes", {}, 200),
    ],
)
@pytest.mark.parametrize("given", ["mine", None])
def test_every_answer_names_its_request_whoever_gives_it(pair, method, path, headers, status, given):
    named = {"x-request-id": given} if given is not None else {}
    with httpx.Client(trust_env=False, timeout=30) as http:
        body = b"x" * 5 * MIB if status == 413 else b""
        answer = http.request(method, pair.url + path, headers={**headers, **named}, content=body)
    assert answer.status_code == status
    name = answer.headers.get_list("x-request-id")
    assert name == [given] if given is not None else name[0].startswith("req-")


@pytest.mark.parametrize("request_id", ["x" * 129, "with space", "caf\xe9"])
def test_a_request_id_that_cannot_be_echoed_is_refused(pair, request_id):
    answer = pair.post(TEXT, {"model": "auto", "prompt": "x"}, x_request_id=request_id.encode("latin-1"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request_id")
    assert request_id not in answer.headers["x-request-id"]


def test_nothing_of_a_prompt_is_in_the_log(pair):
    pair.post(TEXT, {"model": "auto", "prompt": CANARY, "max_tokens": 1})
    pair.post(TEXT, {"model": "auto", "prompt": [CANARY, CANARY]})
    assert CANARY not in pair.said()
