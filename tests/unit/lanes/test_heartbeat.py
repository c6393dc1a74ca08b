"""A device loop's page: what its host writes is what its router reads, whoever dies when."""

import os
import subprocess
import sys
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes.engines.base import Emission, SequenceSpec
from lanes.engines.scripted import ScriptedEngine
from lanes.environment import HEARTBEAT_FD_VARIABLE
from lanes.heartbeat import KINDS, PAGE_BYTES, Activity, Beat, Heartbeat, HeartbeatPage, Took, shared_page
from lanes.wire import Sampling


@pytest.fixture
def page():
    return bytearray(PAGE_BYTES)


def a_sequence(engine, heartbeat, request_id="a", max_tokens=2):
    engine.add(SequenceSpec(request_id, (5, 6), max_tokens, Sampling()))
    heartbeat.added(request_id, engine)


def still(now_s=5.0):
    """A clock."""
    return now_s


def took(*steps):
    """Of no time, for each kind of step."""
    return tuple(Took(count, 0.0) for count in steps)


def stepped(heartbeat, engine, lane="throughput"):
    heartbeat.stepping(lane, "m", engine)
    heartbeat.stepped(lane, engine, engine.step())


def test_a_page_says_what_has_begun_and_what_it_brought(page):
    reader, heartbeat, engine = HeartbeatPage(page, -1), Heartbeat(page, still), ScriptedEngine()
    assert reader.read() == Beat()
    heartbeat.loading("m\u00e9")
    assert reader.read() == Beat(1, activity=Activity.LOAD, model="m\u00e9")
    assert str(reader.read()) == "the load of m\u00e9"
    a_sequence(engine, heartbeat)
    stepped(heartbeat, engine)
    assert reader.read() == Beat(2, (0, 1), (0, 0), Activity.PREFILL, "throughput", "m")
    stepped(heartbeat, engine)
    assert reader.read() == Beat(3, (0, 2), (0, 1), Activity.DECODE, "throughput", "m", took(0, 0, 1, 0))
    heartbeat.idle()
    assert reader.read() == Beat(4, (0, 2), (0, 2), Activity.IDLE, took=took(0, 0, 1, 1))


def test_a_page_says_what_steps_of_each_kind_took(page):
    times_s = iter([10.0, 10.5, 12.0, 20.0, 20.25])
    reader, heartbeat, engine = HeartbeatPage(page, -1), Heartbeat(page, lambda: next(times_s)), ScriptedEngine()
    for lane in ("interactive", "interactive", "throughput"):
        heartbeat.stepping(lane, "m", engine)
    heartbeat.idle()
    heartbeat.loading("m")
    assert dict(zip(KINDS, reader.read().took, strict=True)) == {
        ("interactive", Activity.PREFILL): Took(),
        ("interactive", Activity.DECODE): Took(2, 2.0),
        ("throughput", Activity.PREFILL): Took(),
        ("throughput", Activity.DECODE): Took(1, 8.0),
    }


def test_a_step_is_a_prefill_while_somebody_in_it_waits_for_a_first_token(page):
    reader, heartbeat = HeartbeatPage(page, -1), Heartbeat(page)
    engine, other = ScriptedEngine(), ScriptedEngine()
    a_sequence(engine, heartbeat, "a")
    heartbeat.stepping("interactive", "m", other)
    assert reader.read().activity is Activity.DECODE
    heartbeat.stepping("throughput", "m", engine)
    heartbeat.stepped("throughput", engine, [])
    heartbeat.stepping("throughput", "m", engine)
    assert reader.read().activity is Activity.PREFILL
    heartbeat.stepped("throughput", engine, [Emission("a", (5,))])
    a_sequence(engine, heartbeat, "b")
    heartbeat.left("b")
    heartbeat.stepping("throughput", "m", engine)
    assert reader.read().activity is Activity.DECODE


def test_what_a_host_wrote_can_be_read_after_it_was_killed():
    host = dedent("""
        import os, signal
        from lanes import heartbeat
        beat = heartbeat.inherited()
        for _ in range(1000):
            beat.idle()
        beat.loading("big")
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    with shared_page() as page:
        environment = {**os.environ, HEARTBEAT_FD_VARIABLE: str(page.fd)}
        subprocess.run([sys.executable, "-c", host], env=environment, pass_fds=(page.fd,), check=False)
        assert page.read() == Beat(1001, activity=Activity.LOAD, model="big")


def test_a_host_that_died_while_it_wrote_leaves_what_it_wrote_before(page):
    reader, heartbeat = HeartbeatPage(page, -1), Heartbeat(page)
    heartbeat.loading("m")
    before = reader.read()
    page[0] += 1  # as it stands while the next beat is written
    page[20] ^= 0xFF
    assert reader.read() == before


@given(st.binary(min_size=128, max_size=512))
def test_no_page_however_broken_upsets_its_reader(garbage):
    page = bytearray(PAGE_BYTES)
    page[: len(garbage)] = garbage
    page[0] &= 0xFE
    assert isinstance(str(HeartbeatPage(page, -1).read()), str)


def test_a_name_that_is_too_long_is_cut(page):
    Heartbeat(page).loading("\u00e9" * 500)
    assert HeartbeatPage(page, -1).read().model == "\u00e9" * 128
