"""More requests than slots, clients that leave, and two lanes side by side."""

import json
from contextlib import asynccontextmanager

import anyio
import pytest

pytestmark = pytest.mark.anyio

DEADLINE_S = 45.0
TEXT = "/v1/completions"
FOR_EVER = 1_000_000
SHORT = {"model": "echo", "prompt": "ab", "max_tokens": 4}
NO_END = {"logit_bias": {"0": -100, "4": -100}}
"""Keeps the embedded target, whose end tokens these are, from ending an answer early."""

LANES = pytest.mark.parametrize("lane", ["interactive", "throughput"])


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def http(narrow):
    async with narrow.http() as client:
        with anyio.fail_after(DEADLINE_S):
            yield client


def ask(http, lane, body=SHORT):
    return http.post(TEXT, json=body, headers={"X-Opta-Lane": lane})


@asynccontextmanager
async def holding(http, lane, fields=None):
    """A stream that holds a slot of the lane for as long as the block lasts; then its client leaves."""
    body = {**SHORT, "max_tokens": FOR_EVER, "stream": True, **(fields or {})}
    async with http.stream("POST", TEXT, json=body, headers={"X-Opta-Lane": lane}) as stream:
        assert stream.status_code == 200
        lines = stream.aiter_lines()
        await anext(lines)
        yield lines


async def sorted_statuses(http, lane, count):
    """Answers of requests sent together, by status."""
    answers = []

    async def one():
        answers.append(await ask(http, lane))

    async with anyio.create_task_group() as tg:
        for _ in range(count):
            tg.start_soon(one)
    return sorted(answers, key=lambda answer: answer.status_code)


def check_not_now(answer, status, code):
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["retry-after"].isdigit()
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["x-request-id"]


async def test_a_full_queue_is_a_429_and_a_wait_that_is_too_long_a_503(http):
    async with holding(http, "throughput"):
        full, waited = await sorted_statuses(http, "throughput", 2)
        check_not_now(full, 429, "queue_full")
        check_not_now(waited, 503, "deadline")
    answer = await ask(http, "throughput")
    assert answer.status_code == 200


@LANES
async def test_a_client_that_leaves_its_stream_frees_the_slot(http, lane):
    for _ in range(3):
        async with holding(http, lane):
            pass
    answer = await served(http, lane)
    assert answer.json()["choices"][0]["text"] == "abab"


async def served(http, lane):
    """The answer, once the lane has a place: its last client's leaving takes a moment to be noticed."""
    while (answer := await ask(http, lane)).status_code != 200:
        assert answer.status_code in (429, 503)
    return answer


async def test_a_client_that_leaves_before_its_whole_answer_frees_the_slot(http):
    async with anyio.create_task_group() as tg:
        tg.start_soon(ask, http, "interactive", {**SHORT, "max_tokens": FOR_EVER})
        while (await ask(http, "auto")).headers["x-opta-route"] != "auto:busy":
            pass
        tg.cancel_scope.cancel()
    assert (await ask(http, "interactive")).status_code == 200


async def test_a_client_that_leaves_the_queue_frees_its_place(http):
    async with anyio.create_task_group() as tg, holding(http, "interactive"):
        outcomes, turned_away = [], anyio.Event()

        async def one():
            answer = await ask(http, "interactive")
            outcomes.append(answer.status_code)
            turned_away.set()

        waiting = [anyio.CancelScope() for _ in range(2)]

        async def within(scope):
            with scope:
                await one()

        for scope in waiting:
            tg.start_soon(within, scope)
        await turned_away.wait()  # one found the queue full, so the other is in it
        assert outcomes == [429]
        for scope in waiting:
            scope.cancel()
        # Only a place in the queue makes a request wait; a full queue would answer at once.
        while True:
            with anyio.move_on_after(0.5) as still_waiting:
                assert (await ask(http, "interactive")).status_code == 429
            if still_waiting.cancelled_caught:
                break
    assert (await served(http, "interactive")).json()["opta"]["lane"] == "interactive"


async def test_auto_goes_where_there_is_room(http):
    await served(http, "interactive")
    assert (await ask(http, "auto")).headers["x-opta-route"] == "auto:room"
    async with holding(http, "interactive"):
        answer = await ask(http, "auto")
        assert (answer.headers["x-opta-lane"], answer.headers["x-opta-route"]) == ("throughput", "auto:busy")


async def test_background_work_does_not_hold_up_a_person(pair):
    async with pair.http() as http, anyio.create_task_group() as tg:
        background = []

        async def one():
            body = {"model": "auto", "prompt": "import os\n", "max_tokens": 4000, **NO_END}
            answer = await ask(http, "throughput", body)
            background.append(answer.status_code)

        for _ in range(6):
            tg.start_soon(one)
        async with holding(http, "throughput", {"model": "auto", **NO_END}):  # the batch is decoding
            for _ in range(3):
                answer = await ask(http, "interactive", {"model": "auto", "prompt": "def f(", "max_tokens": 16})
                assert (answer.status_code, answer.headers["x-opta-lane"]) == (200, "interactive")
            assert background == []
        tg.cancel_scope.cancel()


async def test_ten_times_too_many_requests_end_in_an_answer_or_in_not_now(http):
    answers = await sorted_statuses(http, "throughput", 40)
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert answers[0].status_code == 200
    for answer in answers:
        if answer.status_code != 200:
            check_not_now(answer, answer.status_code, {429: "queue_full", 503: "deadline"}[answer.status_code])
    assert (await served(http, "throughput")).json()["usage"]["completion_tokens"] == 4


async def test_an_echo_streams_its_prompt_token_by_token(http):
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    async with http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = [line.removeprefix("data: ") async for line in stream.aiter_lines() if line]
    *chunks, done = lines
    texts = [json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert ("".join(texts), done) == ("hello", "[DONE]")
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "stop"


async def test_a_client_says_how_long_it_would_wait_for_its_turn(http):
    async with holding(http, "interactive"):
        headers = {"X-Opta-Lane": "interactive", "X-Request-Timeout": "0.2"}
        check_not_now(await http.post(TEXT, json=SHORT, headers=headers), 503, "deadline")


@pytest.mark.parametrize("given", ["soon", "0", "-1", "inf", "nan"])
async def test_a_wait_that_is_not_a_number_of_seconds_is_refused_by_name(http, given):
    answer = await http.post(TEXT, json=SHORT, headers={"X-Request-Timeout": given})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_timeout", "X-Request-Timeout")
