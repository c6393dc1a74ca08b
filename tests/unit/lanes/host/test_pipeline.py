"""Steps overlap, and each second is still one lane's; what a person waits for is not held up by it."""

import pytest

from lanes.engines.base import Emission
from lanes.host.pipeline import Pipeline


class Device:
    """Works through steps in order; its clock moves when somebody waits for one, or builds one."""

    def __init__(self):
        self.now_s = 0.0
        self.free_s = 0.0


class PlannedEngine:
    """An engine whose steps take ``build_s`` to hand over and ``run_s`` on the device."""

    def __init__(self, device, name, *, build_s, run_s, runs_ahead=False):
        self.runs_ahead = runs_ahead
        self._device = device
        self._name = name
        self._build_s, self._run_s = build_s, run_s
        self._ends_s = []
        self.since_s = []

    def step(self, limit_s=None):
        device = self._device
        device.now_s += self._build_s
        device.free_s = max(device.free_s, device.now_s) + self._run_s
        self._ends_s.append(device.free_s)
        return []

    def finish(self, since_s):
        self.since_s.append(since_s)
        self._device.now_s = max(self._device.now_s, self._ends_s.pop(0))
        return [Emission(self._name)]


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def pipeline(device):
    return Pipeline(lambda: device.now_s)


def start(pipeline, lane, engine):
    pipeline.start(lane, "m", engine, limit_s=None, expected_s=0.0)


def test_a_lonely_step_costs_its_building_and_its_run(device, pipeline):
    engine = PlannedEngine(device, "a", build_s=1, run_s=4)
    start(pipeline, "interactive", engine)
    assert pipeline.finish() == ([Emission("a")], 5)
    assert len(pipeline) == 0


def test_what_is_built_while_another_runs_shortens_the_wait_for_that(device, pipeline):
    a = PlannedEngine(device, "a", build_s=1, run_s=4)
    b = PlannedEngine(device, "b", build_s=2, run_s=3)
    start(pipeline, "interactive", a)
    start(pipeline, "throughput", b)
    assert pipeline.oldest().lane == "interactive"
    assert pipeline.finish() == ([Emission("a")], 1 + 2)
    assert pipeline.finish() == ([Emission("b")], 2 + 3)
    assert device.now_s == 8
    assert b.since_s == [5 - 2]


def test_each_lane_pays_for_its_own_building_where_that_is_all_there_is(device, pipeline):
    cheap = PlannedEngine(device, "a", build_s=4, run_s=0)
    dear = PlannedEngine(device, "b", build_s=11, run_s=0)
    start(pipeline, "interactive", cheap)
    start(pipeline, "throughput", dear)
    assert pipeline.finish()[1] == 4
    start(pipeline, "interactive", cheap)
    assert pipeline.finish()[1] == 11
    assert pipeline.finish()[1] == 4


def test_costs_add_up_to_the_time_that_was_spent(device, pipeline):
    engines = {
        "interactive": PlannedEngine(device, "a", build_s=8, run_s=2),
        "throughput": PlannedEngine(device, "b", build_s=7, run_s=11, runs_ahead=True),
    }
    spent_s = 0.0
    start(pipeline, "interactive", engines["interactive"])
    for turn in range(40):
        lane = "throughput" if turn % 2 == 0 else "interactive"
        start(pipeline, lane, engines[lane])
        spent_s += pipeline.finish()[1]
    spent_s += pipeline.finish()[1]
    assert spent_s == pytest.approx(device.now_s)
    assert device.now_s < 41 * (8 + 2 + 7 + 11) / 2  # they overlapped


@pytest.mark.parametrize(("run_s", "build_s", "allowed"), [(2, 11, False), (12, 11, True)])
def test_a_result_that_its_engine_needs_is_not_held_up_by_building_what_takes_longer(
    device, pipeline, run_s, build_s, allowed
):
    person = PlannedEngine(device, "a", build_s=4, run_s=run_s)
    batch = PlannedEngine(device, "b", build_s=build_s, run_s=1, runs_ahead=True)
    assert pipeline.may_start(person, 0.05)
    for engine in (batch, person):  # what they take is seen
        start(pipeline, "any", engine)
        pipeline.finish()
    start(pipeline, "interactive", person)
    assert pipeline.may_start(batch, 0.05) is allowed
    pipeline.finish()
    start(pipeline, "throughput", batch)
    assert pipeline.may_start(person, None)  # nobody waits for a batch


def test_idle_time_is_nobodys(device, pipeline):
    engine = PlannedEngine(device, "a", build_s=1, run_s=4)
    start(pipeline, "interactive", engine)
    pipeline.finish()
    device.now_s += 100
    start(pipeline, "interactive", engine)
    assert pipeline.finish()[1] == 5


def test_only_who_runs_ahead_starts_again_and_not_while_somebody_waits(device, pipeline):
    careful = PlannedEngine(device, "a", build_s=1, run_s=1)
    eager = PlannedEngine(device, "b", build_s=1, run_s=1, runs_ahead=True)
    assert pipeline.may_start(careful, None)
    start(pipeline, "interactive", careful)
    start(pipeline, "throughput", eager)
    assert not pipeline.may_start(careful, None)
    assert pipeline.may_start(eager, None)
    assert not pipeline.may_start(eager, 0.05)


def test_a_step_that_fails_is_over_all_the_same(device, pipeline):
    engine = PlannedEngine(device, "a", build_s=1, run_s=1)
    start(pipeline, "interactive", engine)
    engine._ends_s.clear()
    with pytest.raises(IndexError):
        pipeline.finish()
    assert len(pipeline) == 0


def test_the_steps_of_a_closed_engine_are_forgotten(device, pipeline):
    a, b = (PlannedEngine(device, name, build_s=1, run_s=1) for name in "ab")
    start(pipeline, "interactive", a)
    start(pipeline, "throughput", b)
    pipeline.drop(a)
    assert [pipeline.oldest().engine, len(pipeline)] == [b, 1]
