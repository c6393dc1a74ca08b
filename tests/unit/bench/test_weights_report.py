"""What is said about a run of `bench weights`."""

import msgspec
import pytest

from bench.bounded_steps import BoundedSteps
from bench.weights import Load, configuration
from bench.weights_report import Cycle, Found, Rates, Reading, Split, alone_line, bars, device_used, shares, table
from policies.load import load

BUSY = Rates(80.0, 40.0)
STEPS = BoundedSteps(200, 3)


def split(weights=(4.0, 1.0), measured=(0.8, 0.79), rates=BUSY):
    return Split(weights=weights, shares=measured, device_used=0.99, rates=rates, bounded_steps=STEPS)


def cycle(*splits, interactive=(100.0, 100.0), throughput=(190.0, 210.0)):
    return Cycle(interactive_alone=interactive, throughput_alone=throughput, splits=splits or (split(),))


def found(*splits, cycles=(), busy_ms=30.0):
    return Found(cycles=cycles or (cycle(*splits),), ttft_idle_ms=(20.0,) * 5, ttft_busy_ms=(busy_ms,) * 5)


def test_a_share_is_of_the_device_time_between_two_readings():
    readings = [
        Reading(0.0, 5.0, 7.0, STEPS),
        Reading(10.0, 13.0, 9.0, STEPS),
        Reading(20.0, 18.0, 14.0, STEPS),
    ]
    assert shares(readings) == (0.8, 0.5)
    assert device_used(readings) == 1.0


def test_the_window_farthest_from_the_weights_is_the_one_that_counts():
    assert split(measured=(0.8, 0.82, 0.77)).worst_share == 0.77
    assert split(measured=(0.8, 0.76)).error == pytest.approx(0.05)


def test_throughputs_are_normalised_by_the_median_of_what_each_lane_has_alone():
    slow = cycle(interactive=(100.0, 40.0), throughput=(200.0, 90.0))
    measured = found(cycles=(cycle(), slow))
    assert measured.alone == Rates(100.0, 195.0)
    (summary,) = measured.summaries
    assert summary.normalised(Rates(50.0, 39.0)) == (0.5, 0.2)


def test_the_median_of_the_sums_counts_and_the_worst_share_of_all():
    slow = cycle(split(measured=(0.8, 0.77), rates=Rates(20.0, 10.0)))
    measured = found(cycles=(cycle(), slow, cycle(split(rates=Rates(90.0, 44.0)))))
    share, total, _ = bars(measured, 1.0)
    assert total.measured == pytest.approx(1.0)
    assert share.measured == pytest.approx(0.03 / 0.8, abs=1e-3)


def test_promises_that_are_just_kept_are_kept():
    kept = bars(found(split(measured=(0.8, 0.761)), split(weights=(1.0, 1.0), measured=(0.524,))), 1.0)
    assert [bar.kept for bar in kept] == [True] * 5


@pytest.mark.parametrize(
    "broken",
    [found(split(measured=(0.8, 0.75))), found(split(rates=Rates(80.0, 30.0))), found(busy_ms=30.1)],
)
def test_a_promise_that_was_not_kept_is_said_to_be(broken):
    assert [bar.kept for bar in bars(broken, 1.0)].count(False) == 1


def test_the_table_has_a_line_for_each_pair_of_weights_and_one_for_each_lane_alone():
    lines = table(found(split(), split(weights=(16.0, 1.0)))).splitlines()
    assert len(lines) == 2 + 2 + 1
    assert len({line.count("|") for line in lines}) == 1
    assert "3 of 200 (1.5%)" in lines[2]


def test_how_steady_the_machine_was_is_said():
    line = alone_line(found(cycles=(cycle(), cycle(interactive=(100.0, 95.0)))))
    assert line.endswith("interactive 100.0, 100.0, 95.0; throughput 190.0, 210.0, 190.0, 210.0 tokens/s")


@pytest.mark.parametrize(
    ("measured", "target", "draft"),
    [
        (Load(), "embedded:target", "embedded:draft"),
        (Load(target="/models/another", background=64, max_step_ms=70.0), "/models/another", None),
    ],
)
def test_the_router_has_room_for_every_stream_of_the_model_that_is_measured(tmp_path, measured, target, draft):
    file = tmp_path / "opta.yaml"
    file.write_bytes(msgspec.json.encode(configuration(measured)))
    config = load(file)
    assert [(model.target, model.draft) for model in config.models] == [(target, draft)]
    assert config.lanes.throughput.max_step_ms == measured.max_step_ms
    assert config.lanes.interactive.max_active == measured.interactive
    assert config.lanes.throughput.max_active >= measured.background
