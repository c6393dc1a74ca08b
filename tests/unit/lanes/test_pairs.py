"""The shell around the decider of residency: what it tells the host, requests and an operator."""

import io

import anyio
import pytest

from lanes import wire
from lanes.errors import PairUnavailable, WireError
from lanes.pairs import PairPolicy, Pairs

pytestmark = pytest.mark.anyio

SPEC = wire.ModelSpec("m", "t", "d", preload=False)
FACTS = wire.PairFacts(2048, 300, 100, 200, 2, 4096)
INFO = wire.ModelInfo("m", "t", "d", 2048, 100, 300, 100, 1.5)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Host:
    """What a host was told."""

    def __init__(self, policy=None, *specs):
        self.now_s = 100.0
        self.told = []
        self.ready = 0
        self.terminal = Terminal()
        self.pairs = Pairs(specs or (SPEC,), policy or PairPolicy(), lambda: self.now_s, self.terminal)
        self.pairs.host_started(0, self.told.append, self.settled)

    def settled(self):
        self.ready += 1


async def test_a_pair_is_looked_at_then_loaded_then_held_and_given_back():
    host = Host()
    async with anyio.create_task_group() as tg:
        inside, leave = anyio.Event(), anyio.Event()

        async def hold():
            async with host.pairs.leased("m", 10, 1) as waited:
                assert waited
                inside.set()
                await leave.wait()

        tg.start_soon(hold)
        await anyio.wait_all_tasks_blocked()
        assert host.told == [wire.Prepare("m")]
        host.pairs.received(wire.ModelPrepared("m", FACTS))
        assert host.told[1:] == [wire.Load("m")]
        host.pairs.received(wire.ModelLoaded(INFO))
        await inside.wait()
        assert (host.pairs.view("m").in_use, host.pairs.loaded) == (1, {"m": INFO})
        leave.set()
    assert host.pairs.view("m").in_use == 0
    async with host.pairs.leased("m", 0, 0) as waited:
        assert not waited


async def test_progress_says_what_is_done_how_far_it_is_and_what_is_next_also_on_a_terminal():
    host = Host()
    host.pairs.load("m")
    assert host.pairs.progress("m") is None
    host.now_s += 2
    seen = []
    for stage, done, total in (("fetching", 512, 2048), ("examining", 0, 0)):
        host.pairs.received(wire.ModelProgress("m", stage, done, total))
        seen.append(host.pairs.progress("m"))
    host.pairs.received(wire.ModelPrepared("m", FACTS))
    for stage in ("target", "draft", "calibrating"):
        host.pairs.received(wire.ModelProgress("m", stage))
        seen.append(host.pairs.progress("m"))
    host.pairs.received(wire.ModelLoaded(INFO))
    assert [(p.stage, p.next) for p in seen] == [
        ("fetching", "examining"),
        ("examining", "target"),
        ("target", "draft"),
        ("draft", "calibrating"),
        ("calibrating", None),
    ]
    assert (seen[0].done_bytes, seen[0].total_bytes, seen[0].elapsed_s) == (512, 2048, 2.0)
    assert host.pairs.progress("m") is None
    assert "m: fetching 512 B of 2 KiB, 2 s" in host.terminal.getvalue()
    assert host.terminal.getvalue().endswith("\r\x1b[K\r")


async def test_an_objection_stands_before_the_load_and_is_what_the_request_hears():
    host = Host(PairPolicy(objection=lambda name, facts: f"{name} is not wanted"))
    async with anyio.create_task_group() as tg:

        async def ask():
            with pytest.raises(PairUnavailable, match="m is not wanted"):
                async with host.pairs.leased("m", 10, 1):
                    pass

        tg.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        host.pairs.received(wire.ModelPrepared("m", FACTS))
    assert host.told == [wire.Prepare("m")]
    assert host.pairs.failures() == {"m": "m is not wanted"}


async def test_the_host_is_ready_when_what_it_starts_with_is_there_or_has_failed():
    host = Host(None, wire.ModelSpec("a", "t"), wire.ModelSpec("b", "t"), SPEC)
    assert (host.ready, host.pairs.starting) == (0, ["a", "b"])
    host.pairs.received(wire.ModelFailed("a", "no such file"))
    assert (host.ready, host.pairs.starting) == (0, ["b"])
    host.pairs.received(wire.ModelPrepared("b", FACTS))
    host.pairs.received(wire.ModelLoaded(wire.ModelInfo("b", "t", None, 2048, 100, 300, 0, 1.5)))
    assert host.ready > 0
    assert host.pairs.starting == []


@pytest.mark.parametrize("message", [wire.ModelUnloaded("m"), wire.ModelLoaded(INFO), wire.ModelFailed("x", "?")])
async def test_what_a_host_cannot_say_as_things_stand_ends_the_link(message):
    with pytest.raises(WireError, match="unexpected Model"):
        Host().pairs.received(message)


async def test_what_a_pair_needs_is_said_with_its_parts():
    host = Host(PairPolicy(limit_of=lambda memory_bytes: 500))
    host.pairs.load("m")
    host.pairs.received(wire.ModelPrepared("m", FACTS))
    assert host.pairs.failures()["m"] == (
        "it needs 600 B: target 300 B, draft 100 B, KV caches 200 B for 2 x 2048 tokens; memory.limit allows 500 B"
    )


async def test_prompt_caches_have_what_the_pairs_leave_and_the_host_hears_of_less_before_a_load():
    other = wire.ModelSpec("n", "t", preload=False)
    policy = PairPolicy(lambda memory_bytes: 1500, prompt_caches_of=lambda memory_bytes: 1000)
    host = Host(policy, SPEC, other)
    assert host.told == [wire.LimitPromptCaches(1000)]
    host.pairs.load("m")
    host.pairs.received(wire.ModelPrepared("m", FACTS))
    assert host.told[1:] == [wire.Prepare("m"), wire.LimitPromptCaches(900), wire.Load("m")]
    host.pairs.received(wire.ModelLoaded(INFO))
    host.pairs.load("n")
    host.pairs.received(wire.ModelPrepared("n", FACTS))
    assert host.told[4:] == [wire.Prepare("n"), wire.LimitPromptCaches(300), wire.Load("n")]
    assert host.pairs.prompt_cache_limit_bytes == 300
    host.pairs.received(wire.ModelFailed("n", "no such file"))
    assert host.told[7:] == [wire.LimitPromptCaches(900)]
    host.pairs.unload("m")
    host.pairs.received(wire.ModelUnloaded("m"))
    assert host.told[8:] == [wire.Unload("m"), wire.LimitPromptCaches(1000)]


async def test_the_next_host_is_told_what_prompt_caches_may_take():
    host = Host(PairPolicy(lambda memory_bytes: 1500, prompt_caches_of=lambda memory_bytes: 1000))
    host.pairs.host_lost()
    host.pairs.host_started(0, host.told.append, host.settled)
    assert host.told == [wire.LimitPromptCaches(1000)] * 2
