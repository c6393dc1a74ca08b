"""How a host's process is ended."""

import os
import signal
import threading
import time

import anyio
import psutil
import pytest

from lanes.host_process import send_signal

pytestmark = pytest.mark.anyio


@pytest.fixture
def reaping(monkeypatch):
    """Until it is set, asyncio does not reap; ``subprocess`` has a ``waitpid`` of its own."""
    may_reap, waitpid = threading.Event(), os.waitpid

    def late(pid, options):
        assert may_reap.wait(20)
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", late)
    yield may_reap
    may_reap.set()


def ended(pid):
    """Return when it has ended; nobody reaps it."""
    process = psutil.Process(pid)
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


async def test_a_signal_to_a_process_that_has_just_ended_does_not_lose_its_status(reaping):
    process = await anyio.open_process(["sh", "-c", "exit 7"])
    ended(process.pid)
    send_signal(process, signal.SIGTERM)
    reaping.set()
    assert await process.wait() == 7
    await process.aclose()


async def test_a_running_process_is_ended_by_the_signal():
    async with await anyio.open_process(["sleep", "60"]) as process:
        send_signal(process, signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM
        send_signal(process, signal.SIGKILL)  # it is over: nothing happens
