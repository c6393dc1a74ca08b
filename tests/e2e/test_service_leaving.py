"""Clients that leave while they wait, during their prompt, and out of the middle of a batch of real answers."""

import json
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import h2.config
import h2.connection
import pytest

from tests.e2e.router_process import ANSWER_DEADLINE_S, router

pytestmark = pytest.mark.anyio

TEXT = "/v1/completions"
PAIR = """
lanes:
  interactive: {max_active: 1, max_queue: 8, queue_timeout: 60s}
  throughput: {max_active: 8, max_queue: 8, queue_timeout: 60s}
"""
NO_END = {"logit_bias": {"0": -100, "4": -100}}
"""Keeps the embedded target, whose end tokens these are, from ending an answer early."""
NEIGHBOUR = {"prompt": "def reverse(text):\n", "max_tokens": 200}
LONG_PROMPT = "def f(a, b):\n    return a + b\n\n" * 150
"""Takes the embedded target seconds to read."""
FOR_EVER = {"prompt": "import os\n", "max_tokens": 3500}

LANES = pytest.mark.parametrize("lane", ["interactive", "throughput"])


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with router(tmp_path_factory.mktemp("pair"), PAIR) as process:
        yield process


@pytest.fixture(scope="module")
def neighbours_text(running):
    """The neighbour's answer when nobody disturbs it."""
    body = {"model": "auto", "temperature": 0, **NO_END, **NEIGHBOUR}
    return running.post(TEXT, body, x_opta_lane="throughput").json()["choices"][0]["text"]


@asynccontextmanager
async def client(running):
    async with running.http() as http:
        with anyio.fail_after(ANSWER_DEADLINE_S):
            yield http


@asynccontextmanager
async def streaming(http, lane, fields):
    """The texts of a stream, whose client leaves at the end of the block; its prompt is on the device."""
    body = {"model": "auto", "temperature": 0, "stream": True, **NO_END, **fields}
    async with http.stream("POST", TEXT, json=body, headers={"X-Opta-Lane": lane}) as stream:
        assert stream.status_code == 200
        yield texts(stream)


async def texts(stream):
    async for line in stream.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))["choices"][0]["text"]


async def until_lane(http, lane, **expected):
    """Wait until an operator would see this of the lane."""
    while True:
        shown = (await http.get("/admin/lanes")).json()[lane]
        if {name: shown[name] for name in expected} == expected:
            return
        await anyio.sleep(0.01)


async def rest_of(stream):
    return "".join([text async for text in stream])


@LANES
async def test_who_leaves_during_a_long_prompt_frees_everything_and_spoils_nothing(running, neighbours_text, lane):
    async with client(running) as http:
        async with streaming(http, "throughput", NEIGHBOUR) as neighbour:
            first = await anext(neighbour)
            async with streaming(http, lane, {"prompt": LONG_PROMPT, "max_tokens": 50}) as unread:
                with anyio.move_on_after(0.05) as still_reading_the_prompt:
                    await anext(unread)
                assert still_reading_the_prompt.cancelled_caught
            others = 1 if lane == "throughput" else 0
            await until_lane(http, lane, active=others, queued=0)
            assert first + await rest_of(neighbour) == neighbours_text
        for each in ("interactive", "throughput"):
            await until_lane(http, each, active=0, queued=0, on_device=0)


async def test_who_leaves_the_middle_of_a_batch_frees_its_slot_and_the_others_answers_are_the_same(
    running, neighbours_text
):
    async with client(running) as http, AsyncExitStack() as batch:
        neighbour = await batch.enter_async_context(streaming(http, "throughput", NEIGHBOUR))
        first = await anext(neighbour)
        async with AsyncExitStack() as others:
            # All are kept: an iterator that is forgotten closes its stream.
            streams = [await others.enter_async_context(streaming(http, "throughput", FOR_EVER)) for _ in range(3)]
            for stream in streams:
                await anext(stream)
            await until_lane(http, "throughput", active=4)
        await until_lane(http, "throughput", active=1)
        assert first + await rest_of(neighbour) == neighbours_text
        await until_lane(http, "throughput", active=0, queued=0, on_device=0)


async def test_who_leaves_the_queue_frees_its_place_while_the_stream_before_it_goes_on(running):
    async with client(running) as http:
        async with streaming(http, "interactive", FOR_EVER) as holding:
            await anext(holding)
            async with anyio.create_task_group() as tg:
                for _ in range(3):
                    tg.start_soon(ask_in_vain, http)
                await until_lane(http, "interactive", active=1, queued=3)
                tg.cancel_scope.cancel()
            await until_lane(http, "interactive", active=1, queued=0)
            assert await anext(holding) is not None
        await until_lane(http, "interactive", active=0, queued=0, on_device=0)


async def ask_in_vain(http):
    async with streaming(http, "interactive", NEIGHBOUR):
        raise AssertionError("there was a slot")


async def test_who_resets_its_http2_streams_frees_their_slots_though_its_connection_stays(running):
    body = json.dumps({"model": "auto", "stream": True, **NO_END, **FOR_EVER}).encode()
    pseudo = [(":method", "POST"), (":path", TEXT), (":scheme", "http"), (":authority", "localhost")]
    headers = [*pseudo, ("content-type", "application/json"), ("x-opta-lane", "throughput")]
    protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    protocol.initiate_connection()
    host, port = running.url.removeprefix("http://").split(":")
    async with client(running) as http, await anyio.connect_tcp(host, int(port)) as connection:
        stream_ids = (1, 3, 5)
        for stream_id in stream_ids:
            protocol.send_headers(stream_id, headers)
            protocol.send_data(stream_id, body, end_stream=True)
        await connection.send(protocol.data_to_send())
        await until_lane(http, "throughput", active=3)
        for stream_id in stream_ids:
            protocol.reset_stream(stream_id)
        await connection.send(protocol.data_to_send())
        await until_lane(http, "throughput", active=0, queued=0, on_device=0)
