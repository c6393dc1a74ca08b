"""Supervisors of hosts in processes of their own, and requests to them."""

import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from lanes import wire
from lanes.states import HostState
from lanes.supervisor import HOST_COMMAND, HostSettings, Supervisor

LANES = {"interactive": wire.LaneSpec(8, 1), "throughput": wire.LaneSpec(1, 8)}
ECHO = wire.ModelSpec("echo", "scripted:step_s=0.001")
DEADLINE_S = 60
PLANTED = [sys.executable, str(Path(__file__).with_name("planted_host.py"))]


@asynccontextmanager
async def supervised(*models, command=HOST_COMMAND, standby=False):
    supervisor = Supervisor(HostSettings(LANES, models or (ECHO,), standby=standby), command)
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
