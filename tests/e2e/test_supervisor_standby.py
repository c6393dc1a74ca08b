"""A host that stands by, and takes the place of one that dies."""

import os
import signal

import psutil
import pytest

from lanes import supervisor as supervision
from lanes import watchdog, wire
from tests.e2e.supervision import TEXT, Asked, begun, check_whole, is_running, supervised, to_its_end, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def at_once(monkeypatch):
    """A host stands by as soon as another one is ready."""
    monkeypatch.setattr(supervision, "STAND_BY_AFTER_S", 0.0)
    monkeypatch.setattr(supervision, "STAND_BY_AT_LAST_S", 0.0)


async def test_a_host_that_stands_by_takes_the_place_of_one_that_dies_and_another_stands_by(at_once, caplog):
    async with supervised(standby=True) as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        generation = ask("a", max_tokens=4000)
        events = await begun(generation)
        for _ in range(2):
            await until(lambda: supervisor.standby_pid)
            spare_pid = supervisor.standby_pid
            os.kill(supervisor.host_pid, signal.SIGKILL)
            await supervisor.wait_lost()
            await supervisor.wait_ready()
            assert supervisor.host_pid == spare_pid
        check_whole(events + await to_its_end(generation), TEXT, 4000)
        assert (supervisor.restarts, ask.ends) == (2, ["a"])
        await until(lambda: supervisor.standby_pid)
    assert not is_running(spare_pid)
    assert "stood by is gone" not in caplog.text


async def test_one_that_dies_while_it_stands_by_is_missed_by_nobody(at_once, caplog):
    async with supervised(standby=True) as supervisor:
        await supervisor.wait_ready()
        await until(lambda: supervisor.standby_pid)
        os.kill(supervisor.standby_pid, signal.SIGKILL)
        await until(lambda: supervisor.standby_pid is None)
        assert "the host that stood by is gone: the host was ended by SIGKILL" in caplog.text
        assert (supervisor.restarts, supervisor.last_failure) == (0, None)
        os.kill(supervisor.host_pid, signal.SIGKILL)
        await supervisor.wait_lost()
        await supervisor.wait_ready()
        check_whole(await to_its_end(Asked(supervisor)("a", max_tokens=20)), TEXT, 20)


async def test_a_host_is_made_ready_while_another_one_is_doubted(monkeypatch):
    monkeypatch.setattr(watchdog, "MIN_DEADLINE_S", 30.0)
    monkeypatch.setattr(watchdog, "DOUBT", 0.02)
    async with supervised(standby=True) as supervisor:
        await supervisor.wait_ready()
        generation = Asked(supervisor)("a", max_tokens=4000)
        events = await begun(generation)
        assert supervisor.standby_pid is None
        os.kill(supervisor.host_pid, signal.SIGSTOP)
        await until(lambda: supervisor.standby_pid)
        assert supervisor.restarts == 0
        os.kill(supervisor.host_pid, signal.SIGCONT)
        check_whole(events + await to_its_end(generation), TEXT, 4000)
        assert supervisor.restarts == 0


async def test_engines_are_imported_while_it_stands_by(at_once):
    model = wire.ModelSpec("opta-tiny", "embedded:target", preload=False)
    async with supervised(model, standby=True) as supervisor:
        await supervisor.wait_ready()
        await until(lambda: supervisor.standby_pid)
        spare = psutil.Process(supervisor.standby_pid)
        await until(lambda: any("tokenizers" in file.path for file in spare.memory_maps()))


async def test_where_none_is_wanted_none_stands_by(at_once):
    before = {child.pid for child in psutil.Process().children()}  # other tests' routers
    async with supervised() as supervisor:
        await supervisor.wait_ready()
        check_whole(await to_its_end(Asked(supervisor)("a", max_tokens=2000)), TEXT, 2000)
        assert supervisor.standby_pid is None
        assert {child.pid for child in psutil.Process().children()} - before == {supervisor.host_pid}
