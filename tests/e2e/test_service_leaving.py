"""Every way to leave, in every state of a request, in both lanes: what it held is free, and its neighbour goes on."""

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager

import anyio
import h2.config
import h2.connection
import h2.events
import pytest

from tests.e2e.router_process import ANSWER_DEADLINE_S, router

pytestmark = pytest.mark.anyio

TWO_SLOTS = """
lanes:
  interactive: {max_active: 2, max_queue: 16, queue_timeout: 60s}
  throughput: {max_active: 2, max_queue: 16, queue_timeout: 60s}
"""
PATH = "/v1/completions"
GREEDY = {"model": "auto", "temperature": 0, "stream": True, "logit_bias": {"0": -100, "4": -100}}
NEIGHBOUR = {"prompt": "def reverse(text):\n", "max_tokens": 3000}
FOR_EVER = {"prompt": "import os\n", "max_tokens": 3000}
LONG_PROMPT = "def f(a, b):\n    return a + b\n\n" * 150
"""Takes the embedded target seconds to read, if its beginning is not known."""
COMPARED_TOKENS = 120
RESET = struct.pack("ii", 1, 0)

LANES = pytest.mark.parametrize("lane", ["interactive", "throughput"])


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with router(tmp_path_factory.mktemp("pair"), TWO_SLOTS) as process:
        yield process


class Http1:
    """One request on a connection of its own, over HTTP/1.1."""

    async def ask(self, running, lane, fields):
        host, port = running.url.removeprefix("http://").split(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._received = b""
        self._request(lane, json.dumps({**GREEDY, **fields}).encode())
        return self

    def _request(self, lane, body):
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-opta-lane: {lane}\r\n"
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def started(self):
        """Its prompt is in the host."""
        await self._until(b"HTTP/1.1 200 ")

    async def spoken(self):
        """Its first text has come."""
        await self._until(b"data: {")

    async def _until(self, sign):
        while sign not in self._received:
            self._received += await self._read()

    async def _read(self):
        data = await self._reader.read(65536)
        assert data, "the router hung up"
        return data

    async def has_no_text(self):
        """It is given a moment, in which a short prompt would have been answered."""
        with anyio.move_on_after(0.05):
            await self.spoken()
        return b"data: {" not in self._received

    def close(self):
        self._writer.close()

    def reset(self):
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._writer.transport.abort()


class Http2(Http1):
    """The same over HTTP/2, as the only stream of its connection."""

    def _request(self, lane, body):
        self._protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._protocol.initiate_connection()
        pseudo = [(":method", "POST"), (":path", PATH), (":scheme", "http"), (":authority", "localhost")]
        headers = [*pseudo, ("content-type", "application/json"), ("x-opta-lane", lane)]
        self._protocol.send_headers(1, headers)
        self._protocol.send_data(1, body, end_stream=True)
        self._writer.write(self._protocol.data_to_send())

    async def _read(self):
        shown = b""
        for event in self._protocol.receive_data(await super()._read()):
            if isinstance(event, h2.events.ResponseReceived):
                shown += b"HTTP/1.1 %s " % dict(event.headers)[b":status"]
            elif isinstance(event, h2.events.DataReceived):
                shown += event.data
        self._writer.write(self._protocol.data_to_send())
        return shown

    def reset_stream(self):
        """The connection stays."""
        self._protocol.reset_stream(1)
        self._writer.write(self._protocol.data_to_send())


WAYS = [(Http1, "close"), (Http1, "reset"), (Http2, "close"), (Http2, "reset"), (Http2, "reset_stream")]


@asynccontextmanager
async def neighbour(running, lane, admin):
    """A stream that runs all the while; at the end what it has said must be what it says alone."""
    body = {**GREEDY, **NEIGHBOUR}
    alone = {**body, "stream": False, "max_tokens": COMPARED_TOKENS}
    expected = (await admin.post(PATH, json=alone, headers={"x-opta-lane": lane})).json()["choices"][0]["text"]
    async with running.http() as http, http.stream("POST", PATH, json=body, headers={"x-opta-lane": lane}) as stream:
        lines = (line async for line in stream.aiter_lines() if line.startswith("data: {"))
        said = text(await anext(lines))
        yield
        while len(said) < len(expected):
            said += text(await anext(lines))
        assert said.startswith(expected)


def text(line):
    return json.loads(line.removeprefix("data: "))["choices"][0]["text"]


@asynccontextmanager
async def operator(running):
    async with running.http() as http:
        with anyio.fail_after(ANSWER_DEADLINE_S):
            yield http


async def until_lane(http, lane, **expected):
    """Wait until an operator would see this of the lane."""
    while True:
        shown = (await http.get("/admin/lanes")).json()[lane]
        if {name: shown[name] for name in expected} == expected:
            return
        await anyio.sleep(0.01)


async def all_is_free(admin):
    for lane in ("interactive", "throughput"):
        await until_lane(admin, lane, active=0, queued=0, on_device=0)


@LANES
async def test_who_leaves_the_middle_of_its_answer_frees_its_slot(running, lane):
    async with operator(running) as admin:
        async with neighbour(running, lane, admin):
            for client, way in WAYS:
                leaver = await client().ask(running, lane, FOR_EVER)
                await leaver.spoken()
                await until_lane(admin, lane, active=2)
                getattr(leaver, way)()
                await until_lane(admin, lane, active=1, queued=0)
                leaver.close()
        await all_is_free(admin)


@LANES
async def test_who_leaves_during_its_prompt_frees_its_slot(running, lane):
    async with operator(running) as admin:
        async with neighbour(running, lane, admin):
            for client, way in WAYS:
                prompt = f"# {lane}, {client.__name__}, {way}\n{LONG_PROMPT}"
                leaver = await client().ask(running, lane, {"prompt": prompt, "max_tokens": 50})
                await leaver.started()
                assert await leaver.has_no_text()
                getattr(leaver, way)()
                await until_lane(admin, lane, active=1, queued=0)
                leaver.close()
        await all_is_free(admin)


@LANES
async def test_who_leaves_the_queue_frees_its_place_and_the_next_one_is_served(running, lane):
    async with operator(running) as admin:
        async with neighbour(running, lane, admin):
            holding = await Http1().ask(running, lane, FOR_EVER)
            await holding.spoken()
            leavers = [(await client().ask(running, lane, FOR_EVER), way) for client, way in WAYS]
            await until_lane(admin, lane, active=2, queued=len(WAYS))
            next_one = await Http1().ask(running, lane, FOR_EVER)
            await until_lane(admin, lane, active=2, queued=len(WAYS) + 1)
            for remaining, (leaver, way) in reversed(list(enumerate(leavers, start=1))):
                getattr(leaver, way)()
                await until_lane(admin, lane, active=2, queued=remaining)
                leaver.close()
            holding.close()
            await next_one.spoken()
            next_one.close()
            await until_lane(admin, lane, active=1, queued=0)
        await all_is_free(admin)


async def test_several_who_leave_a_batch_at_once_free_their_slots(pair):
    async with operator(pair) as admin:
        async with neighbour(pair, "throughput", admin):
            leavers = [await client().ask(pair, "throughput", FOR_EVER) for client, _ in WAYS]
            for leaver in leavers:
                await leaver.spoken()
            await until_lane(admin, "throughput", active=len(WAYS) + 1)
            for leaver, (_, way) in zip(leavers, WAYS, strict=True):
                getattr(leaver, way)()
            await until_lane(admin, "throughput", active=1, queued=0)
            for leaver in leavers:
                leaver.close()
        await all_is_free(admin)
