"""A client at its own bound, over HTTP: who of its requests waits, and who is told at once that its turn is too far."""

import hashlib

import anyio
import pytest

from tests.e2e.router_process import ANSWER_DEADLINE_S, router

pytestmark = pytest.mark.anyio

AGENT_KEY, ANN_KEY = "opta-agent-0123456789abcdef", "opta-ann-0123456789abcdef"
CONFIG = f"""
models:
  - {{name: echo, target: "scripted:step_s=0.02", preload: true}}
clients:
  - {{name: agent, key_sha256: "{hashlib.sha256(AGENT_KEY.encode()).hexdigest()}", max_active: 1}}
  - {{name: ann, key_sha256: "{hashlib.sha256(ANN_KEY.encode()).hexdigest()}"}}
"""
A_SECOND = {"model": "echo", "prompt": "ab", "max_tokens": 50}
"""Takes the scripted model, with its steps of 20 ms, no less than that."""
WAITING = 8


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def ask(http, key, lane, fields=None, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    named = {"authorization": f"Bearer {key}", "x-opta-lane": lane, **names}
    return await http.post("/v1/completions", json={**A_SECOND, **(fields or {})}, headers=named)


async def lane_once(http, holds):
    """The throughput lane as an operator sees it, as soon as it is so."""
    while True:
        lane = (await http.get("/admin/lanes")).json()["throughput"]
        if holds(lane):
            return lane
        await anyio.sleep(0.01)


async def test_whose_clients_own_slot_comes_too_late_is_told_at_once_while_both_lanes_have_room(tmp_path):
    with router(tmp_path, CONFIG) as running, anyio.fail_after(ANSWER_DEADLINE_S):
        async with running.http() as http, anyio.create_task_group() as others:
            for _ in range(2):  # the client's rate is measured: a slot in a second, or in more
                assert (await ask(http, AGENT_KEY, "throughput")).status_code == 200
            for _ in range(1 + WAITING):
                others.start_soon(ask, http, AGENT_KEY, "throughput")
            full = await lane_once(http, lambda lane: lane["queued"] == WAITING)
            # Another one has got the slot, and will hold it for a second.
            before = await lane_once(http, lambda lane: lane["granted"] > full["granted"])
            refused = await ask(http, AGENT_KEY, "throughput", x_request_timeout="5")
            after = await lane_once(http, lambda lane: True)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "deadline")
            assert WAITING <= int(refused.headers["retry-after"]) <= 60
            # It came after them, and was answered before any of them had its turn: it has not waited.
            assert (before["active"], before["queued"], before["granted"]) == (1, WAITING - 1, after["granted"])
            assert (await ask(http, ANN_KEY, "throughput", {"max_tokens": 1}, x_request_timeout="5")).status_code == 200
            others.cancel_scope.cancel()
