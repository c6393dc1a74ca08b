"""Routers that are killed: no host outlives them, and no file."""

import os
import signal
import sys
from contextlib import asynccontextmanager

import anyio
import psutil
import pytest

from tests.e2e.supervision import DEADLINE_S, is_running, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


ROUTER = """
import anyio
from lanes import supervisor as supervision, wire

async def main():
    lanes = {"interactive": wire.LaneSpec(8, 1), "throughput": wire.LaneSpec(1, 8)}
    models = (wire.ModelSpec("echo", "scripted:step_s=%s"),)
    supervision.STAND_BY_AT_LAST_S = 0.0
    supervisor = supervision.Supervisor(supervision.HostSettings(lanes, models, standby=%s))
    async with anyio.create_task_group() as tg:
        tg.start_soon(supervisor.run)
        await supervisor.wait_ready()
        endless = wire.Submit("a", "echo", "interactive", wire.TextPrompt("x"), 1 << 40, wire.Sampling())
        await supervisor.submit(endless, lambda end: None).receive()
        print(supervisor.host_pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@asynccontextmanager
async def router_in(root, step_s=0.001, standby=False):
    """A router whose host answers for ever, in steps of that length."""
    environment = {**os.environ, "TMPDIR": str(root)}
    async with await anyio.open_process(
        [sys.executable, "-c", ROUTER % (step_s, standby)], env=environment, stderr=None
    ) as process:
        with anyio.fail_after(DEADLINE_S):
            yield process


@pytest.mark.parametrize("host_is", ["turning", "in a long step", "stopped"])
async def test_a_host_ends_when_its_router_is_killed_whatever_it_does_and_leaves_no_file(socket_root, host_is):
    async with router_in(socket_root, 1000.0 if host_is == "in a long step" else 0.001) as process:
        host_pid = int(await process.stdout.receive())
        assert is_running(host_pid)
        if host_is == "stopped":
            os.kill(host_pid, signal.SIGSTOP)
        process.kill()
        await process.wait()
        await until(lambda: not is_running(host_pid))
    assert list(socket_root.iterdir()) == []


async def test_a_host_that_stands_by_ends_with_its_router_too(socket_root):
    async with router_in(socket_root, standby=True) as process:
        host_pid = int(await process.stdout.receive())
        router = psutil.Process(process.pid)
        await until(lambda: len(router.children()) == 2 and not any(socket_root.iterdir()))
        (spare_pid,) = {child.pid for child in router.children()} - {host_pid}
        process.kill()
        await process.wait()
        await until(lambda: not is_running(host_pid) and not is_running(spare_pid))
    assert list(socket_root.iterdir()) == []


async def test_a_router_that_is_killed_before_its_host_has_connected_leaves_nothing_either(socket_root):
    async with router_in(socket_root) as process:
        await until(lambda: any(socket_root.iterdir()))
        await until(lambda: psutil.Process(process.pid).children())
        (host,) = psutil.Process(process.pid).children()
        process.kill()
        await process.wait()
        await until(lambda: not is_running(host.pid))
    assert list(socket_root.iterdir()) == []
