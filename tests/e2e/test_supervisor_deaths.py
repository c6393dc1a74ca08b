"""Hosts that die and hang, in their own processes: who goes on, who does not, and what is said of it."""

import os
import signal
import sys

import pytest

from lanes import restarts, watchdog, wire
from lanes.errors import HostDied, HostUnavailable, PairUnavailable, RequestRefused
from lanes.heartbeat import Activity
from tests.e2e.supervision import (
    DEADLINE_S,
    ECHO,
    PLANTED,
    TEXT,
    Asked,
    answer,
    begun,
    check_whole,
    is_running,
    request,
    supervised,
    text_of,
    to_its_end,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A supervisor's arguments for hosts that break where a prompt says so, and are replaced at once."""
    monkeypatch.setenv("OPTA_PLANTED", str(tmp_path))
    monkeypatch.setattr(restarts, "BACKOFF_S", (0.0,))
    return {"command": PLANTED}


@pytest.fixture
def impatient(monkeypatch):
    """Nobody has to wait for a deadline that is meant for slow devices."""
    monkeypatch.setattr(watchdog, "MIN_DEADLINE_S", 1.0)
    monkeypatch.setattr(
        watchdog, "UNMEASURED_S", {**watchdog.UNMEASURED_S, Activity.PREFILL: 1.0, Activity.DECODE: 1.0}
    )


async def test_when_the_host_is_killed_its_requests_go_on_on_another_as_if_nothing_had_happened():
    async with supervised() as supervisor:
        await supervisor.wait_ready()
        first_pid = supervisor.host_pid
        ask = Asked(supervisor)
        lanes = {"a": "interactive", "b": "throughput", "c": "throughput"}
        generations = [ask(name, lane=lane) for name, lane in lanes.items()]
        beginnings = [await begun(generation) for generation in generations]
        os.kill(first_pid, signal.SIGKILL)
        await until(lambda: supervisor.restarts == 1)
        assert supervisor.last_failure == "the host was ended by SIGKILL"
        late = ask("late")  # it waits for the next host, as the others do
        for generation, beginning in zip(generations, beginnings, strict=True):
            check_whole(beginning + await to_its_end(generation), TEXT, 2000)
        check_whole(await to_its_end(late), TEXT, 2000)
        assert sorted(ask.ends) == ["a", "b", "c", "late"]
        assert supervisor.host_pid != first_pid
        assert (supervisor.resumed, supervisor.waiting, supervisor.restarts) == (3, 0, 1)


async def test_a_stop_string_that_a_death_cuts_in_two_still_ends_the_answer_and_is_not_seen(planted):
    before, stop = "h\u00e9llo ", "\u4e2d\U0001f980 h"
    assert stop in TEXT * 2
    async with supervised(wire.ModelSpec("echo", "scripted:step_s=0.1"), **planted) as supervisor:
        await supervisor.wait_ready()
        generation = Asked(supervisor)("a", stop=(stop,))
        events = []
        in_a_character = len(before.encode()) + 4
        while sum(len(event.token_ids) for event in events if isinstance(event, wire.Delta)) < in_a_character:
            events += await generation.receive()
        os.kill(supervisor.host_pid, signal.SIGKILL)
        events += await to_its_end(generation)
        assert (text_of(events), events[-1].reason) == (before, "stop")
        assert supervisor.resumed == 1


async def test_a_host_that_aborts_is_replaced_and_the_cause_is_kept(planted):
    async with supervised(**planted) as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        aborts, beside = ask("a", text="ABORT-ONCE "), ask("b", lane="throughput")
        check_whole(await to_its_end(aborts), "ABORT-ONCE ", 2000)
        check_whole(await to_its_end(beside), TEXT, 2000)
        assert supervisor.last_failure == "the host was ended by SIGABRT"
        assert supervisor.last_activity == "a prefill step of echo in the interactive lane"
        assert supervisor.restarts == 1


@pytest.mark.parametrize("fault", ["HANG-ONCE", "SPIN-ONCE"])
async def test_a_host_that_gets_nowhere_is_killed_and_its_requests_go_on(planted, impatient, fault):
    async with supervised(**planted) as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        stuck, beside = ask("a", text=f"{fault} "), ask("b", lane="throughput")
        check_whole(await to_its_end(stuck), f"{fault} ", 2000)
        check_whole(await to_its_end(beside), TEXT, 2000)
        assert "the host hung and was killed: " in supervisor.last_failure
        assert supervisor.restarts == 1


async def test_a_host_that_is_stopped_is_noticed_and_replaced(impatient):
    async with supervised() as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        generation = ask("a", max_tokens=4000)
        events = await begun(generation)
        stopped_pid = supervisor.host_pid
        os.kill(stopped_pid, signal.SIGSTOP)
        check_whole(events + await to_its_end(generation), TEXT, 4000)
        assert not is_running(stopped_pid)
        assert ask.ends == ["a"]


async def test_a_slow_prefill_is_left_alone_and_one_that_is_killed_begins_again(planted, impatient):
    async with supervised(**planted) as supervisor:
        await supervisor.wait_ready()
        slow = Asked(supervisor)("a", text="PREFILL ", max_tokens=20)
        assert isinstance((await slow.receive())[0], wire.Started)
        await until(lambda: supervisor._beat is not None and supervisor.stats is not None)
        os.kill(supervisor.host_pid, signal.SIGKILL)
        events = [wire.Started("a", 8), *await to_its_end(slow)]
        check_whole(events, "PREFILL ", 20)
        assert (supervisor.restarts, supervisor.resumed) == (1, 1)


@pytest.mark.parametrize(
    ("when", "deaths"),
    [("ABORT", {2}), pytest.param("ABORT-DECODING", {2}, marks=pytest.mark.slow), ("ABORT-LATE", {2, 3})],
)
async def test_a_request_that_every_host_dies_of_fails_and_the_others_go_on(planted, when, deaths):
    async with supervised(**planted) as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        innocent = [ask(f"i{n}", lane=lane) for n, lane in enumerate(["interactive", *["throughput"] * 6])]
        beginnings = [await begun(generation) for generation in innocent]
        poison = ask("poison", lane="throughput", text=f"{when} ")
        with pytest.raises(RequestRefused) as caught:
            await to_its_end(poison)
        assert caught.value.code == "poison_request"
        for generation, beginning in zip(innocent, beginnings, strict=True):
            check_whole(beginning + await to_its_end(generation), TEXT, 2000)
        assert sorted(ask.ends) == sorted(["poison", *(f"i{n}" for n in range(7))])
        assert supervisor.restarts in deaths
        assert supervisor.quarantined() == {}


async def test_a_second_death_during_a_resumption_makes_a_request_the_poison(planted):
    async with supervised(**planted) as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        generation = ask("a", text="PREFILL ")
        for death in (1, 2):
            await until(lambda: supervisor.stats is not None and supervisor.stats.lanes["interactive"].active == 1)
            os.kill(supervisor.host_pid, signal.SIGKILL)
            await until(lambda death=death: supervisor.restarts == death)
        with pytest.raises(RequestRefused) as caught:
            await to_its_end(generation)
        assert caught.value.code == "poison_request"
        assert (ask.ends, supervisor.resumed, supervisor.waiting) == (["a"], 1, 0)


async def test_a_pair_that_kills_whoever_loads_it_is_left_out_and_the_others_come_back(planted):
    bad = wire.ModelSpec("aborts-in-load", "scripted:")
    async with supervised(bad, ECHO, **planted) as supervisor:
        await supervisor.wait_ready()
        assert supervisor.restarts == restarts.QUARANTINE_DEATHS
        quarantine = supervisor.quarantined()[bad.name]
        assert quarantine.cause == "the host was ended by SIGABRT, in the load of aborts-in-load"
        with pytest.raises(
            RequestRefused, match="model aborts-in-load is in quarantine: 3 engines died of it"
        ) as caught:
            supervisor.submit(request("a", model=bad.name), lambda end: None)
        assert caught.value.code == "model_unavailable"
        assert text_of(await answer(supervisor, request("b", max_tokens=5))) == "hello"
        assert supervisor.pairs.failures().keys() == {bad.name}
        supervisor.lift_quarantine(bad.name)
        assert (supervisor.quarantined(), supervisor.pairs.failures()) == ({}, {})


async def test_who_waits_for_a_pair_that_kills_every_host_hears_that_it_is_unavailable(planted):
    bad = wire.ModelSpec("aborts-in-load", "scripted:", preload=False)
    async with supervised(bad, ECHO, **planted) as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        beside = ask("beside", lane="throughput")
        with pytest.raises(PairUnavailable, match="is not available: in quarantine: 3 engines died of it"):
            async with supervisor.pairs.leased(bad.name, DEADLINE_S, 1):
                pass
        check_whole(await to_its_end(beside), TEXT, 2000)
        assert set(supervisor.quarantined()) == {bad.name}


async def test_when_hosts_do_not_come_up_whoever_waits_hears_of_it_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(restarts, "BACKOFF_S", (0.0,))
    flag = tmp_path / "flag"
    script = f"""
import os, pathlib, sys
flag = pathlib.Path({str(flag)!r})
if flag.exists():
    sys.exit(7)
flag.touch()
os.execv(sys.executable, [sys.executable, "-m", "lanes.host", sys.argv[1]])
"""
    async with supervised(command=[sys.executable, "-c", script]) as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        generation = ask("a")
        await begun(generation)
        os.kill(supervisor.host_pid, signal.SIGKILL)
        with pytest.raises(HostDied, match="the engine does not come up: the host ended with status 7"):
            await to_its_end(generation)
        assert ask.ends == ["a"]
        with pytest.raises(HostUnavailable):
            ask("late")
