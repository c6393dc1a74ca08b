"""A supervised host in its own process: its start, its protocol, and what is refused."""

import json
import logging
import os
import signal
import sys
from textwrap import dedent

import pytest

from lanes import host_process, wire
from lanes.errors import HostUnavailable, RequestRefused
from lanes.states import HostState
from tests.e2e.supervision import ECHO, Asked, answer, begun, is_running, request, supervised, text_of, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


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
from lanes import framing, wire
link = socket.socket(socket.AF_UNIX)
link.connect(path)

def hello(token=os.environ["OPTA_HOST_TOKEN"], protocol=wire.PROTOCOL_VERSION):
    return wire.Hello(os.getpid(), token, wire.Versions("1", "1", "1", "cpu"), protocol)

def say(*messages):
    link.sendall(b"".join(map(framing.encode, messages)))

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
