"""Pairs that come and go through the real stack: who waits, who stays, and what they leave."""

import contextlib
import threading

import httpx
import openai
import pytest

from tests.e2e.model_views import LIMIT_BYTES, ask, configuration, settled_bytes, state, view
from tests.e2e.processes import eventually, resident_bytes
from tests.e2e.router_process import router
from tests.tiny_pairs import make

LONG_PROMPT = "def add(a, b):\n    return a + b\n\n" * 10
"""Long enough to be kept."""


def only_one_fits(parts):
    pairs = {"a": (parts["target"], parts["draft"], {}), "b": (parts["draft"], parts["target"], {})}
    return configuration(pairs).replace(str(LIMIT_BYTES), str(6 * 1024**2))


def test_twenty_clients_who_want_two_pairs_in_turn_are_all_served_without_a_load_for_each(tmp_path, parts):
    clients, turns = 20, 3
    answers = []
    with router(tmp_path, only_one_fits(parts)) as running:

        def client(number):
            for turn in range(turns):
                lane = "interactive" if number % 2 else "throughput"
                answers.append(ask(running, "ab"[(number + turn) % 2], lane))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * clients * turns
        assert all(found["in_use"] == found["waiting"] == 0 for found in running.get("/admin/models").json()["models"])
        assert loads(running) <= clients * turns / 4


def test_a_stream_outlives_the_wish_for_its_memory(tmp_path, parts):
    with router(tmp_path, only_one_fits(parts)) as running:
        late = []
        with running.sdk(**{"X-Opta-Lane": "throughput"}) as client:
            stream = client.completions.create(
                model="a", prompt="x", max_tokens=900, temperature=0, stream=True, logit_bias={"0": -100, "4": -100}
            )
            next(iter(stream))
            thread = threading.Thread(target=lambda: late.append(ask(running, "b")))
            thread.start()
            eventually(lambda: state(running, "a") == "leaving" or state(running, "b") == "waiting")
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        thread.join()
        assert late[0].status_code == 200
        assert (state(running, "a"), state(running, "b")) == ("absent", "resident")


def test_a_stream_goes_on_while_another_pair_is_loaded(tmp_path, parts):
    long = make(tmp_path / "long", max_position_embeddings=1 << 15)
    pairs = {"running": (long, None, {}), "coming": ("embedded:target", "embedded:draft", {})}
    chunks = []
    with (
        router(tmp_path, configuration(pairs).replace(str(LIMIT_BYTES), str(1 << 30))) as running,
        running.sdk(**{"X-Opta-Lane": "throughput"}) as client,
    ):
        stream = client.completions.create(
            model="running",
            prompt="x",
            max_tokens=30_000,
            temperature=0,
            stream=True,
            logit_bias={"0": -100, "4": -100},
        )

        def read():
            with contextlib.suppress(httpx.HTTPError, openai.APIError):
                chunks.extend(chunk for chunk in stream)

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: chunks)
        assert running.post("/admin/models/coming/load", b"").status_code == 202
        seen = []

        def is_loading():
            progress = view(running, "coming")["progress"]
            assert state(running, "coming") != "failed", view(running, "coming")["message"]
            seen.extend([progress] if progress and progress["stage"] in ("target", "draft", "calibrating") else [])
            return seen

        eventually(is_loading)
        before = len(chunks)
        eventually(lambda: state(running, "coming") == "resident")
        assert len(chunks) >= before + 20
        stages = (("target", "draft"), ("draft", "calibrating"), ("calibrating", None))
        assert (seen[0]["stage"], seen[0]["next"]) in stages
        assert seen[0]["done_bytes"] <= seen[0]["total_bytes"]
        assert view(running, "running")["in_use"] == 1
        stream.close()
        reader.join()


@pytest.mark.parametrize("swaps", [4, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_memory_does_not_grow_when_pairs_change_places(tmp_path, parts, swaps):
    with router(tmp_path, only_one_fits(parts)) as running:
        host = running.host_pid()
        first = None
        for _ in range(swaps):
            for here, there in ("ab", "ba"):
                assert running.post(f"/admin/models/{there}/unload", b"").status_code in (200, 202)
                assert ask(running, here).status_code == 200
            if first is None:
                first = settled_bytes(running), resident_bytes(host)
        last = settled_bytes(running), resident_bytes(host)
        print(f"\n{swaps} swaps: device {first[0]:,} to {last[0]:,} B, host process {first[1]:,} to {last[1]:,} B")
        assert last[0] <= first[0] * 1.05
        assert last[1] <= first[1] * 1.05
        assert loads(running) == 2 * swaps


def loads(running):
    return sum(": loaded " in line for line in running.said().splitlines())


def test_an_operator_loads_and_unloads_and_is_told_what_there_is_to_wait_for(tmp_path, parts):
    with router(tmp_path, configuration({"a": (parts["target"], parts["draft"], {"keep_alive": -1})})) as running:
        assert running.post("/admin/models/nobody/load", b"").status_code == 404
        started = running.post("/admin/models/a/load", b"")
        assert (started.status_code, started.json()["state"]) == (202, "preparing")
        eventually(lambda: state(running, "a") == "resident")
        seen = view(running, "a")
        assert (seen["pinned"], seen["in_use"], seen["message"]) == (True, 0, None)
        assert seen["load_s"] > 0
        assert running.post("/admin/models/a/load", b"").status_code == 200
        assert ask(running, "a", prompt=LONG_PROMPT).status_code == 200
        eventually(lambda: view(running, "a")["prompt_caches"]["size_bytes"] > 0)
        assert running.post("/admin/models/a/unload", b"").status_code == 202
        eventually(lambda: state(running, "a") == "absent")
        assert running.get("/admin/models").json()["reserved_bytes"] == 0
        eventually(lambda: view(running, "a")["prompt_caches"]["size_bytes"] == 0)
        answer = ask(running, "a", prompt=LONG_PROMPT)
        assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert "load of model a by " in running.said()
