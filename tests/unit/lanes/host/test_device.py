"""The device thread, stepping scripted engines."""

import queue
import time
from contextlib import contextmanager

import pytest

from lanes import wire
from lanes.engines.base import Emission, SequenceSpec
from lanes.heartbeat import PAGE_BYTES, Activity, Heartbeat, HeartbeatPage
from lanes.host.device import Add, Cancel, DeviceThread, Move, Moved, SetLanes, Stop
from lanes.host.loader import Load, Loaded, Prepare, Unload
from lanes.host.residents import examine, facts_of, loading

LANES = {"interactive": wire.LaneSpec(8, 1), "throughput": wire.LaneSpec(1, 8)}
MODEL = wire.ModelSpec("m", "scripted:")
DEADLINE_S = 20


def examined(model):
    return examine(model, lambda done, total: None)


class Device:
    """A running device thread and what it has reported."""

    def __init__(self, lanes):
        self._reports = queue.SimpleQueue()
        page = bytearray(PAGE_BYTES)
        self.page = HeartbeatPage(page, -1)
        self.thread = DeviceThread(
            lanes, lambda reports: [self._reports.put(report) for report in reports], Heartbeat(page)
        )
        self.send = self.thread.send

    def load(self, model=MODEL):
        """Make a model resident. Nothing else may be under way, for its reports would be skipped."""
        self.send(Load(examined(model)))
        return self.report(Loaded)

    def add(self, request_id, *, lane="interactive", model=MODEL, prompt=(5, 6, 7), max_tokens=6):
        spec = SequenceSpec(request_id, prompt, max_tokens, wire.Sampling())
        self.send(Add(lane, model.name, spec))

    def report(self, of=Emission):
        """The next report of a kind; heartbeats and the like are skipped."""
        deadline_s = time.monotonic() + DEADLINE_S
        while True:
            report = self._reports.get(timeout=max(deadline_s - time.monotonic(), 0))
            if isinstance(report, of):
                return report

    def last_emission(self, request_id):
        while True:
            emission = self.report()
            if emission.request_id == request_id and (emission.finish or emission.error):
                return emission


@contextmanager
def running(lanes=LANES):
    device = Device(lanes)
    device.thread.start()
    try:
        device.load()
        yield device
    finally:
        device.send(Stop())
        device.thread.join(DEADLINE_S)


def test_a_sequence_runs_to_its_end_and_its_model_is_loaded_once():
    with running() as device:
        device.add("a")
        tokens = [device.report().token_ids for _ in range(6)]
        assert tokens == [(5,), (6,), (7,), (5,), (6,), (7,)]
        device.send(Load(examined(MODEL)))
        device.add("b", max_tokens=1)
        assert device.report((Emission, Loaded)) == Emission("b", (5,), finish="length")


def test_what_the_thread_does_stands_on_its_page():
    with running() as device:
        device.add("a", lane="throughput")
        device.last_emission("a")
        device.add("b", max_tokens=1_000_000)
        for _ in range(2):
            device.report()
        assert (device.page.read().activity, device.page.read().model) == (Activity.DECODE, "m")
        device.send(Cancel("b"))
        device.last_emission("b")
        while device.page.read().activity is not Activity.IDLE:
            time.sleep(0.001)
        beat = device.page.read()
        assert (beat.steps[1], beat.computed[1]) == (6, 6)
        assert beat.steps[0] == beat.computed[0] > 0


def test_what_is_done_to_a_pair_stands_on_the_page_as_its_load(monkeypatch):
    seen = []

    def noting(what):
        def note(*arguments):
            seen.append(str(device.page.read()))
            return what(*arguments)

        return note

    def pieces(examined, lanes, memory):
        noting(lambda: None)()
        yield wire.ModelProgress(examined.spec.name, "target")
        noting(lambda: None)()
        return (yield from loading(examined, lanes, memory))

    with running() as device:
        other = wire.ModelSpec("other", "scripted:")
        monkeypatch.setattr("lanes.host.loader.facts_of", noting(facts_of))
        monkeypatch.setattr("lanes.host.loader.loading", pieces)
        device.add("a", max_tokens=1_000_000)
        device.send(Prepare(examined(other)))
        device.load(other)
        device.send(Cancel("a"))
    assert seen == ["the load of other"] * 3


def test_a_cancelled_sequence_ends_once_and_an_unknown_one_is_nothing():
    with running() as device:
        device.add("a", max_tokens=1_000_000)
        device.report()
        for _ in range(2):
            device.send(Cancel("a"))
        device.send(Cancel("nobody"))
        assert device.last_emission("a").finish == "cancelled"
        device.add("b", max_tokens=1)
        assert device.report() == Emission("b", (5,), finish="length")


def test_a_cancellation_takes_effect_before_the_next_step():
    heard = queue.SimpleQueue()

    def publish(reports):
        for report in reports:
            if isinstance(report, Emission):
                heard.put(report)
                thread.send(Cancel("a"))  # on the device thread, between two steps
            elif isinstance(report, Loaded):
                thread.send(Add("throughput", "m", SequenceSpec("a", (5, 6, 7), 1_000_000, wire.Sampling())))

    thread = DeviceThread(LANES, publish)
    thread.start()
    thread.send(Load(examined(MODEL)))
    first, last = heard.get(timeout=DEADLINE_S), heard.get(timeout=DEADLINE_S)
    thread.send(Stop())
    thread.join(DEADLINE_S)
    assert (first.token_ids, last) == ((5,), Emission("a", finish="cancelled"))
    assert heard.empty()


def test_what_a_model_needs_is_known_before_it_is_loaded():
    with running() as device:
        device.send(Prepare(examined(MODEL)))
        facts = device.report(wire.ModelPrepared).facts
    assert (facts.context_tokens, facts.total_bytes) == (1 << 20, 0)
    assert [path.lane for path in facts.paths] == list(LANES)


def test_a_request_for_a_model_that_is_not_resident_fails_and_the_others_go_on():
    with running() as device:
        device.send(Add("interactive", "gone", SequenceSpec("a", (5,), 1, wire.Sampling())))
        assert device.last_emission("a").error == "model 'gone' is not resident"
        device.add("b")
        assert device.last_emission("b").finish == "length"


def test_a_request_for_a_lane_that_does_not_exist_fails_and_is_not_forgotten():
    with running({"throughput": wire.LaneSpec(1, 8)}) as device:
        device.add("a", lane="interactive")
        assert "could not be started" in device.last_emission("a").error


def test_a_step_that_fails_ends_the_sequences_of_its_engine_and_no_others():
    with running() as device:
        device.add("other lane", lane="throughput", max_tokens=1_000_000)
        device.add("neighbour", max_tokens=1_000_000)
        device.add("broken", prompt=())
        failed = [device.last_emission(name) for name in ("neighbour", "broken")]
        assert all(emission.error for emission in failed)
        device.add("after")
        assert device.last_emission("after").finish == "length"
        device.send(Cancel("other lane"))
        assert device.last_emission("other lane").finish == "cancelled"


def test_two_busy_lanes_share_the_device_by_weight_and_new_weights_rule_at_once(monkeypatch):
    monkeypatch.setattr("lanes.host.device.HEARTBEAT_S", 0.05)
    model = wire.ModelSpec("slow", "scripted:step_s=0.001")
    with running() as device:
        device.load(model)
        for lane in LANES:
            device.add(lane, lane=lane, model=model, max_tokens=1_000_000)
        first = shares(device, heartbeats=15)
        assert first["interactive"] > 2 * first["throughput"]
        device.send(SetLanes({"interactive": wire.LaneSpec(1, 1), "throughput": wire.LaneSpec(8, 8)}))
        second = shares(device, heartbeats=15)
        assert second["throughput"] > 2 * second["interactive"]


@pytest.mark.parametrize(("max_step_s", "late"), [(0.001, True), (30.0, False)])
def test_steps_beside_another_lane_count_and_so_do_those_that_took_longer_than_they_should(max_step_s, late):
    model = wire.ModelSpec("slow", "scripted:step_s=0.005")
    with running(
        {"interactive": wire.LaneSpec(1, 1), "throughput": wire.LaneSpec(1, 8, max_step_s=max_step_s)}
    ) as device:
        device.load(model)
        device.add("alone", lane="throughput", model=model, max_tokens=3)
        device.last_emission("alone")
        for lane in LANES:
            device.add(lane, lane=lane, model=model, max_tokens=1_000_000)
        device.report(wire.Stats)
        device.report(wire.Stats)
        lanes = device.report(wire.Stats).lanes
        assert (lanes["interactive"].bounded_steps, lanes["interactive"].late_steps) == (0, 0)
        throughput = lanes["throughput"]
        assert 0 < throughput.bounded_steps <= throughput.steps - 3
        assert throughput.late_steps == (throughput.bounded_steps if late else 0)


def shares(device, heartbeats):
    """Device seconds that each lane had over the next heartbeats, the first of which may be an old one."""
    device.report(wire.Stats)
    before = device.report(wire.Stats).lanes
    for _ in range(heartbeats):
        after = device.report(wire.Stats).lanes
    return {lane: after[lane].device_s - before[lane].device_s for lane in after}


def test_a_model_is_unloaded_once_and_comes_back_when_it_is_loaded_again():
    with running() as device:
        device.add("a")
        assert device.last_emission("a").finish == "length"
        device.send(Unload("m"))
        assert device.report((Loaded, wire.ModelUnloaded)) == wire.ModelUnloaded("m")
        assert device.load().info.name == "m"
        device.add("b")
        assert device.last_emission("b").finish == "length"


def test_what_still_runs_on_a_model_that_is_unloaded_ends_and_says_so():
    with running() as device:
        device.add("a", max_tokens=1_000_000)
        device.report()
        device.send(Unload("m"))
        assert device.last_emission("a").error == "model 'm' was unloaded"
        device.load()
        device.send(Cancel("a"))
        device.add("b", max_tokens=1)
        assert device.report() == Emission("b", (5,), finish="length")


def test_a_sequence_goes_on_in_the_other_lane_where_it_was():
    slow = wire.ModelSpec("slow", "scripted:step_s=0.01")
    with running() as device:
        device.load(slow)
        device.add("a", model=slow, max_tokens=40)
        tokens = [*device.report().token_ids]
        device.send(Move("a", "throughput"))
        moved = device.report((Moved, Emission))
        while isinstance(moved, Emission):
            tokens += moved.token_ids
            moved = device.report((Moved, Emission))
        assert moved == Moved("a", "throughput")
        while len(tokens) < 40:
            tokens += device.report().token_ids
        assert tokens == [5, 6, 7] * 13 + [5]
        lanes = device.report(wire.Stats).lanes
        assert lanes["interactive"].steps + lanes["throughput"].steps == 40
        assert lanes["throughput"].steps > 0


def test_a_move_of_a_sequence_that_has_ended_says_nothing():
    with running() as device:
        device.add("a")
        device.last_emission("a")
        device.send(Move("a", "throughput"))
        device.add("b")
        assert device.report((Moved, Emission)).request_id == "b"


def test_a_move_to_the_lane_where_it_is_changes_nothing():
    slow = wire.ModelSpec("slow", "scripted:step_s=0.01")
    with running() as device:
        device.load(slow)
        device.add("a", model=slow, max_tokens=20)
        device.report()
        device.send(Move("a", "interactive"))
        assert device.report(Moved) == Moved("a", "interactive")
        assert device.last_emission("a").finish == "length"
