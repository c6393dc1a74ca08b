"""A supervised host in its own process: its start, its deaths, and what is refused."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent

import anyio
import psutil
import pytest

from lanes import host_process, restarts, watchdog, wire
from lanes.errors import HostDied, HostUnavailable, PairUnavailable, RequestRefused
from lanes.heartbeat import Activity
from lanes.states import HostState
from lanes.supervisor import HOST_COMMAND, HostSettings, Supervisor

pytestmark = pytest.mark.anyio

LANES = {"interactive": wire.LaneSpec(8, 1), "throughput": wire.LaneSpec(1, 8)}
ECHO = wire.ModelSpec("echo", "scripted:step_s=0.001")
DEADLINE_S = 60
PLANTED = [sys.executable, str(Path(__file__).with_name("planted_host.py"))]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def socket_root(monkeypatch):
    """Where sockets' directories are made; short, for a Unix socket's path is limited to about a hundred bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as root:
        monkeypatch.setattr(tempfile, "tempdir", root)
        yield Path(root)


@asynccontextmanager
async def supervised(*models, command=HOST_COMMAND):
    supervisor = Supervisor(HostSettings(LANES, models or (ECHO,)), command)
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        with anyio.fail_after(DEADLINE_S):
            yield supervisor
        tg.cancel_scope.cancel()
    assert supervisor.state is HostState.STOPPED


async def until(condition):
    while not condition():  # noqa: ASYNC110 - of another process, which sets no event here
        await anyio.sleep(0.01)


def request(request_id, *, model="echo", max_tokens=20, text="hello"):
    return wire.Submit(request_id, model, "interactive", wire.TextPrompt(text), max_tokens, wire.Sampling())


async def answer(supervisor, submit):
    """Everything that a request brings, to its end."""
    return await to_its_end(supervisor.submit(submit, lambda end: None))


async def to_its_end(generation):
    events = []
    while not events or not isinstance(events[-1], wire.Finished):
        events += await generation.receive()
    return events


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


TEXT = "h\u00e9llo \u4e2d\U0001f980 "
"""Most of its characters are spread over several tokens of the scripted engine."""


def echoed(text, max_tokens):
    """The answer of a scripted engine."""
    data = text.encode()
    return (data * (max_tokens // len(data) + 1))[:max_tokens].decode(errors="replace")


def check_whole(events, text, max_tokens):
    """It is an answer without gap or seam, in one piece."""
    assert text_of(events) == echoed(text, max_tokens)
    tokens = 0
    for event in events:
        if isinstance(event, wire.Delta):
            assert event.index == tokens
            tokens += len(event.token_ids)
    assert [type(event) for event in events].count(wire.Started) == 1
    assert (events[-1].reason, events[-1].completion_tokens, tokens) == ("length", max_tokens, max_tokens)


class Asked:
    """Requests, and how often each has ended."""

    def __init__(self, supervisor):
        self.supervisor = supervisor
        self.ends = []

    def __call__(self, request_id, *, lane="interactive", text=TEXT, max_tokens=2000, **fields):
        submit = wire.Submit(request_id, "echo", lane, wire.TextPrompt(text), max_tokens, wire.Sampling(), **fields)
        return self.supervisor.submit(submit, lambda end: self.ends.append(end.request_id))


async def begun(generation):
    """The events of an answer until its first token."""
    events = []
    while not any(isinstance(event, wire.Delta) for event in events):
        events += await generation.receive()
    return events


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, wire.Delta))


def is_running(pid):
    """True unless the process has ended; one that nobody has waited for has ended, too."""
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(status.strip()) and not status.startswith("Z")


async def test_a_host_becomes_ready_answers_and_ends_with_its_supervisor():
    async with supervised() as supervisor:
        with pytest.raises(HostUnavailable, match="engine is"):
            supervisor.submit(request("early"), lambda end: None)
        assert supervisor.not_ready_reasons()
        await supervisor.wait_ready()
        assert supervisor.not_ready_reasons() == []
        assert supervisor.pairs.loaded["echo"].target == ECHO.target
        assert supervisor.versions.mlx
        host_pid = supervisor.host_pid
        assert host_pid != os.getpid()
        assert is_running(host_pid)

        started, *_, finished = events = await answer(supervisor, request("a", max_tokens=12))
        assert started == wire.Started("a", 5)
        assert text_of(events) == "hellohellohe"
        assert finished == wire.Finished("a", "length", 5, 12)
        await until(lambda: supervisor.stats is not None and supervisor.stats.lanes["interactive"].steps >= 12)
    assert not is_running(host_pid)


async def test_a_cancelled_request_leaves_the_device_and_a_stop_string_ends_one():
    async with supervised() as supervisor:
        await supervisor.wait_ready()
        ends = []
        generation = supervisor.submit(request("endless", max_tokens=1_000_000), ends.append)
        received = await generation.receive()
        generation.cancel()
        while not generation.ended:
            received += await generation.receive()
        assert received[-1].reason == ends[0].reason == "cancelled"
        assert len(ends) == 1

        stopping = wire.Submit(
            "stops", "echo", "throughput", wire.TextPrompt("one, two; "), 1_000_000, wire.Sampling(), stop=("; ",)
        )
        events = await answer(supervisor, stopping)
        assert text_of(events) == "one, two"
        assert events[-1].reason == "stop"
        await until(lambda: supervisor.stats and all(lane.active == 0 for lane in supervisor.stats.lanes.values()))


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


@pytest.mark.parametrize(("when", "deaths"), [("ABORT", {2}), ("ABORT-DECODING", {2}), ("ABORT-LATE", {2, 3})])
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


async def test_when_the_router_ends_every_open_request_fails_once():
    async with supervised() as supervisor:
        await supervisor.wait_ready()
        ask = Asked(supervisor)
        running = ask("a", max_tokens=1_000_000)
        await begun(running)
        os.kill(supervisor.host_pid, signal.SIGKILL)
        await until(lambda: supervisor.waiting == 1)
    async with supervised() as other:
        await other.wait_ready()
        ask_other = Asked(other)
        await begun(ask_other("b", max_tokens=1_000_000))
    assert (ask.ends, ask_other.ends) == (["a"], ["b"])


ROUTER = """
import anyio
from lanes import wire
from lanes.supervisor import HostSettings, Supervisor

async def main():
    lanes = {"interactive": wire.LaneSpec(8, 1), "throughput": wire.LaneSpec(1, 8)}
    supervisor = Supervisor(HostSettings(lanes, (wire.ModelSpec("echo", "scripted:step_s=%s"),)))
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
async def router_in(root, step_s=0.001):
    """A router whose host answers for ever, in steps of that length."""
    environment = {**os.environ, "TMPDIR": str(root)}
    async with await anyio.open_process(
        [sys.executable, "-c", ROUTER % step_s], env=environment, stderr=None
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


async def test_a_router_that_is_killed_before_its_host_has_connected_leaves_nothing_either(socket_root):
    async with router_in(socket_root) as process:
        await until(lambda: any(socket_root.iterdir()))
        await until(lambda: psutil.Process(process.pid).children())
        (host,) = psutil.Process(process.pid).children()
        process.kill()
        await process.wait()
        await until(lambda: not is_running(host.pid))
    assert list(socket_root.iterdir()) == []


async def test_the_socket_and_its_directory_belong_to_this_user_alone_and_what_a_host_prints_is_logged(caplog):
    caplog.set_level(logging.INFO, "lanes.host.output")
    script = dedent("""
        import os, sys
        path = sys.argv[-1]
        print("modes", oct(os.stat(path).st_mode), oct(os.stat(os.path.dirname(path)).st_mode), flush=True)
        print("\\u00e9nd\\xe9d", file=sys.stderr)
        print("last words", end="", file=sys.stderr, flush=True)
        sys.exit(3)
    """)
    async with supervised(command=[sys.executable, "-X", "utf8", "-c", script]) as supervisor:
        await until(lambda: supervisor.restarts == 1)
        assert supervisor.last_failure == "the host ended with status 3 before it connected"
        assert supervisor.state is HostState.RESTARTING
        assert supervisor.last_failure in supervisor.not_ready_reasons()
    printed = [record.getMessage() for record in caplog.records if record.name == "lanes.host.output"]
    assert sorted(printed) == ["last words", "modes 0o140600 0o40700", "\u00e9nd\u00e9d"]


async def test_after_the_handshake_nobody_else_can_connect(socket_root):
    async with supervised() as supervisor:
        await until(lambda: any(socket_root.iterdir()))
        await supervisor.wait_ready()
        assert list(socket_root.iterdir()) == []


IMPOSTOR = """
import os, pathlib, socket, sys
flag, path = pathlib.Path(sys.argv[1]), sys.argv[2]
if flag.exists():
    os.execv(sys.executable, [sys.executable, "-m", "lanes.host", path])
flag.touch()
from lanes import wire
link = socket.socket(socket.AF_UNIX)
link.connect(path)

def hello(token=os.environ["OPTA_HOST_TOKEN"], protocol=wire.PROTOCOL_VERSION):
    return wire.Hello(os.getpid(), token, wire.Versions("1", "1", "1", "cpu"), protocol)

def say(*messages):
    link.sendall(b"".join(map(wire.encode, messages)))

{act}
while link.recv(4096):
    pass
"""


@pytest.mark.parametrize(
    ("act", "failure"),
    [
        ('say(hello(token="guess"))', "whoever connected is not the host that was started"),
        ("say(hello(protocol=99))", f"the host speaks protocol 99, not {wire.PROTOCOL_VERSION}"),
        ("say(wire.Ready())", "the host began with Ready, not with Hello"),
        ("link.sendall(b'\\xff' * 100)", "frame of 4294967295 bytes announced"),
        ("sys.exit()", "the host hung up before it said hello"),
        ("say(hello()); link.recv(1); say(wire.Ready(), wire.Ready())", "unexpected Ready"),
        ("say(hello()); link.recv(1); say(hello())", "unexpected Hello"),
        ("say(hello()); link.recv(1); link.sendall(b'\\0\\0\\0\\1\\xc1')", "malformed frame"),
        ("say(hello()); link.recv(1); os.abort()", "the host was ended by SIGABRT"),
    ],
)
async def test_whoever_breaks_the_protocol_is_replaced_by_a_host_that_keeps_it(tmp_path, act, failure):
    script = IMPOSTOR.replace("{act}", act)
    async with supervised(command=[sys.executable, "-c", script, str(tmp_path / "flag")]) as supervisor:
        await until(lambda: supervisor.restarts == 1)
        assert failure in supervisor.last_failure
        await until(lambda: supervisor.state is HostState.READY)
        assert text_of(await answer(supervisor, request("a", max_tokens=5))) == "hello"
        assert supervisor.restarts == 1


async def test_a_host_that_never_connects_is_ended(monkeypatch, caplog):
    monkeypatch.setattr(host_process, "HELLO_DEADLINE_S", 1.0)
    caplog.set_level(logging.INFO, "lanes.host.output")
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    async with supervised(command=[sys.executable, "-c", script]) as supervisor:
        await until(lambda: supervisor.restarts == 1)
        assert "did not connect within 1 s" in supervisor.last_failure
        assert not is_running(int(caplog.messages[0]))


def a_model(directory, *, config=None, tokenizer_config=None, weights=b""):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **(config or {})}))
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config or {}))
    (directory / "model.safetensors").write_bytes(weights)
    return directory


async def test_unsafe_and_broken_models_are_refused_without_running_them_and_the_others_serve(tmp_path):
    executed = tmp_path / "executed"
    code = f"open({str(executed)!r}, 'w').close()"
    runs_code = a_model(tmp_path / "runs-code", config={"model_file": "evil.py"})
    (runs_code / "evil.py").write_text(code)
    auto_map = {"AutoTokenizer": ["evil.Tokenizer", None]}
    maps_code = a_model(tmp_path / "maps-code", tokenizer_config={"auto_map": auto_map})
    (maps_code / "evil.py").write_text(code)
    linked = a_model(tmp_path / "linked")
    (tmp_path / "elsewhere.safetensors").write_bytes(b"")
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    pickled = a_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    corrupt = a_model(tmp_path / "corrupt", weights=b"\xff" * 64)
    expected = {
        "runs-code": "'model_file' would run code",
        "maps-code": "'auto_map' would run code",
        "linked": "links outside of the model's directory",
        "pickled": "has no model*.safetensors",
        "corrupt": "cut off or damaged (64 B)",
        "absent": "no such directory",
        "unknown": "embedded:nothing does not exist",
        "misspelt": "unknown setting 'speed'",
    }
    sources = {name: str(tmp_path / name) for name in expected}
    sources |= {"unknown": "embedded:nothing", "misspelt": "scripted:speed=9"}
    assert {runs_code.name, maps_code.name, linked.name, pickled.name, corrupt.name} < sources.keys()
    models = [wire.ModelSpec(name, source) for name, source in sources.items()]

    async with supervised(*models, ECHO) as supervisor:
        await supervisor.wait_ready()
        assert supervisor.pairs.failures().keys() == expected.keys()
        for name, why in expected.items():
            assert why in supervisor.pairs.failures()[name]
        assert list(supervisor.pairs.loaded) == ["echo"]
        for name in ("runs-code", "never configured"):
            with pytest.raises(RequestRefused) as caught:
                await answer(supervisor, request("a", model=name))
            assert caught.value.code == "model_unavailable"
        assert text_of(await answer(supervisor, request("b", max_tokens=5))) == "hello"
        assert supervisor.restarts == 0
    assert not executed.exists()
