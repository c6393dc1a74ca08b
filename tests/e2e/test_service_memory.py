"""Memory that runs short: what is turned away, what goes on, and what is left when the system gives no more."""

import json
import sys
from contextlib import ExitStack

import pytest

from tests.e2e.processes import eventually
from tests.e2e.router_process import router
from tests.tiny_pairs import make

TEXT = "/v1/completions"
WITHOUT_END = {"0": -100, "4": -100}


def body(**fields):
    return {"model": "m", "prompt": "def add(a, b):\n", "temperature": 0, "logit_bias": WITHOUT_END, **fields}


def test_above_memory_shed_new_requests_are_refused_until_running_ones_have_ended(tmp_path):
    # KV caches are counted for one sequence in each lane; eight long ones in a batch take more than that.
    target = make(tmp_path / "target", max_position_embeddings=2048, num_key_value_heads=2)
    bound = 8 * 1024**2
    config = {
        "models": [{"name": "m", "target": str(target), "preload": True}],
        "memory": {"limit": bound, "shed": bound},
        "lanes": {"throughput": {"max_active": 8}},
    }
    with router(tmp_path, json.dumps(config)) as running, ExitStack() as streams:
        client = streams.enter_context(running.sdk(**{"X-Opta-Lane": "throughput"}))
        answers = [client.completions.create(**body(prompt="x", max_tokens=2000, stream=True)) for _ in range(8)]
        eventually(lambda: running.get("/readyz").status_code == 503)
        reasons = running.get("/readyz").json()["reasons"]
        assert [reason.split(":")[0] for reason in reasons] == ["shedding"]
        for lane in ("interactive", "throughput"):
            refused = running.post(TEXT, body(max_tokens=1), x_opta_lane=lane)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (503, "shedding")
            assert "8 MiB on (memory.shed)" in error["message"]
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert running.get("/admin/lanes").json()[lane]["rejected"]["shedding"] == 1
        for answer in answers[1:]:
            answer.close()
        assert [chunk.choices[0].finish_reason for chunk in answers[0]][-1] == "length"
        eventually(lambda: running.post(TEXT, body(max_tokens=1)).status_code == 200)


STARVING = """
import resource, sys, threading, time
from pathlib import Path

def starve():
    while not starving.exists():
        time.sleep(0.01)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held, held))
    starving.unlink()

starving = Path({starving!r})
if sys.orig_argv[1:3] == ["-m", "lanes.host"]:
    threading.Thread(target=starve, daemon=True).start()
"""
"""Once a file is there, the system gives a host no more memory."""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere RLIMIT_AS bounds nothing")
def test_a_host_that_gets_no_more_memory_dies_alone_and_its_request_is_answered_by_the_next(tmp_path):
    planted, starving = tmp_path / "planted", tmp_path / "starving"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text(STARVING.format(starving=str(starving)))
    target = make(tmp_path / "target", max_position_embeddings=4096, num_hidden_layers=16, num_key_value_heads=2)
    config = {"models": [{"name": "m", "target": str(target), "preload": True}]}
    with router(tmp_path, json.dumps(config), {"PYTHONPATH": str(planted)}) as running:
        starving.touch()
        eventually(lambda: not starving.exists())
        answers = [running.post(TEXT, body(prompt="x " * 2500, max_tokens=8)) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        first, second = (answer.json() for answer in answers)
        assert (first["opta"]["resumed"], second["opta"]["resumed"]) == (1, 0)
        assert first["choices"][0]["text"] == second["choices"][0]["text"]
        engine = running.get("/admin/status").json()["engine"]
        assert (engine["state"], engine["restarts"], engine["quarantined"]) == ("ready", 1, {})
        assert "the host was ended by SIG" in engine["last_failure"]
        assert "Traceback" not in running.said()
        assert running.end() == 0
