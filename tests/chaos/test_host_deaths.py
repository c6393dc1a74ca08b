"""Hosts that die and hang under load, on the embedded pair: nobody sees an error, and no answer changes."""

import json
import os
import random
import signal
import statistics
import time
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lanes import embedded
from lanes.resumption import GOING_DELTAS
from tests.e2e.router_process import router

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(1200)]

MAX_TOKENS = 48
PROMPT_CHARS = 120
ANSWER_DEADLINE_S = 120.0
CONFIG = """
models:
  - {name: opta-tiny, target: "embedded:target", draft: "embedded:draft", preload: true}
lanes:
  interactive: {weight: 1, max_active: 8}
  throughput: {weight: 1, max_active: 8}
"""
WITHOUT_END = {"0": -100, "4": -100}  # the embedded target's end tokens


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Stream:
    """One of those that are always there: an answer, and when it is over the same one again."""

    def __init__(self, http, number):
        self.http = http
        self.lane = ("interactive", "throughput")[number % 2]
        prompts = embedded.held_out_prompts()
        self.prompt = prompts[number % len(prompts)].prompt[:PROMPT_CHARS]
        self.answers = []
        self.resumed = 0
        self.got_on, self.pieces = False, 0
        self.killed_s = None
        self.pauses_s = []

    async def run_once(self):
        """An answer to its end; AssertionError if the router says anything else."""
        body = {"model": "opta-tiny", "prompt": self.prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
        body |= {"logit_bias": WITHOUT_END, "stream_options": {"include_usage": True}}
        text, data = "", ""
        headers = {"X-Opta-Lane": self.lane}
        async with self.http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    break
                event = json.loads(data)
                assert "error" not in event, event
                self.resumed += event.get("opta", {}).get("resumed", 0)
                piece = "".join(choice["text"] for choice in event["choices"])
                if piece:
                    text += piece
                    self._went_on()
        assert data == "[DONE]"
        self.answers.append(text)

    async def run(self, is_over):
        """Answers until ``is_over``."""
        while not is_over():
            await self.run_once()
        self.got_on = True

    def host_was_lost(self, at_s):
        self.got_on, self.pieces = False, 0
        self.killed_s = at_s

    def _went_on(self):
        self.pieces += 1
        self.got_on = self.pieces >= GOING_DELTAS
        if self.killed_s is not None:
            self.pauses_s.append(time.monotonic() - self.killed_s)
            self.killed_s = None


@asynccontextmanager
async def under_load(running, count):
    """Streams on both lanes, whose undisturbed answers are known; at the block's end all are complete and the same."""
    async with httpx.AsyncClient(base_url=running.url, timeout=ANSWER_DEADLINE_S, trust_env=False) as http:
        streams = [Stream(http, number) for number in range(count)]
        async with anyio.create_task_group() as tg:
            for stream in streams:
                tg.start_soon(stream.run_once)
        over = anyio.Event()
        async with anyio.create_task_group() as tg:
            for stream in streams:
                stream.got_on, stream.pieces = False, 0
                tg.start_soon(stream.run, over.is_set)
            yield streams
            over.set()
        for stream in streams:
            assert len(stream.answers) > 1
            assert set(stream.answers) == {stream.answers[0]}


async def all_went_on(streams):
    while not all(stream.got_on for stream in streams):  # noqa: ASYNC110 - of what another process does
        await anyio.sleep(0.02)


async def strike(running, streams, signal_number):
    """Send the host a signal that it does not survive, or not for long."""
    engine = await anyio.to_thread.run_sync(engine_of, running)
    os.kill(engine["pid"], signal_number)
    at_s = time.monotonic()
    await anyio.sleep(0.3)  # what was on its way arrives; another host takes longer to start
    for stream in streams:
        stream.host_was_lost(at_s)


def engine_of(running):
    return running.get("/admin/status").json()["engine"]


def counter(running, name):
    families = text_string_to_metric_families(running.get("/metrics").text)
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def check_nothing_is_left(running, streams, deaths):
    engine, lanes = engine_of(running), running.get("/admin/lanes").json()
    assert (engine["restarts"], engine["waiting"], engine["quarantined"]) == (deaths, 0, {})
    assert engine["resumed"] == sum(stream.resumed for stream in streams) > 0
    assert counter(running, "opta_host_restarts_total") == deaths
    assert counter(running, "opta_requests_resumed_total") == engine["resumed"]
    assert [(lane["active"], lane["queued"]) for lane in lanes.values()] == [(0, 0), (0, 0)]


def report(streams, what):
    pauses_s = sorted(pause for stream in streams for pause in stream.pauses_s)
    answers = sum(len(stream.answers) - 1 for stream in streams)
    resumed = sum(stream.resumed for stream in streams)
    pause = f"median {statistics.median(pauses_s):.2f} s, worst {pauses_s[-1]:.2f} s"
    print(f"\n{what}: {answers} answers, all as undisturbed; {resumed} resumptions; pause {pause}")


@pytest.mark.parametrize(("kills", "count"), [(1, 4), pytest.param(50, 16, marks=pytest.mark.chaos)])
async def test_no_stream_notices_that_its_host_is_killed_again_and_again(tmp_path, kills, count):
    chance = random.Random(4)
    with router(tmp_path, CONFIG) as running:
        async with under_load(running, count) as streams:
            for _ in range(kills):
                # A second death before a stream has got going again would make it the poison: that is another promise.
                await all_went_on(streams)
                await anyio.sleep(chance.uniform(0, 1))
                await strike(running, streams, signal.SIGKILL)
            await all_went_on(streams)
        check_nothing_is_left(running, streams, kills)
        report(streams, f"{kills} kills under {count} streams")


@pytest.mark.chaos
@pytest.mark.parametrize(("stops", "count"), [(5, 16)])
async def test_no_stream_notices_that_its_host_is_stopped(tmp_path, stops, count):
    with router(tmp_path, CONFIG) as running:
        async with under_load(running, count) as streams:
            for _ in range(stops):
                await all_went_on(streams)
                await anyio.sleep(1)
                await strike(running, streams, signal.SIGSTOP)
            await all_went_on(streams)
        check_nothing_is_left(running, streams, stops)
        assert "the host hung and was killed" in engine_of(running)["last_failure"]
        report(streams, f"{stops} stops under {count} streams")
