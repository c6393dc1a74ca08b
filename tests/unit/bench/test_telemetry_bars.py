"""What is said about a run of `bench overhead --telemetry`, and of `bench collector`."""

import msgspec
import pytest

from bench import collector, telemetry


def costs(share=0.97, added_ms=0.2, traced_ms=0.2):
    return [
        telemetry.Cost(name="off", median_ms=1.0, p99_ms=2.0, requests_per_s=4000.0),
        telemetry.Cost(
            name="on",
            median_ms=1.0 + added_ms - 1e-9,
            p99_ms=2.0,
            requests_per_s=4000.0 * share,
            share=share,
            cpu_ms=0.25,
            dropped={"traces": 1234, "metrics": 0},
        ),
        telemetry.Cost(name="every request traced", median_ms=1.0 + traced_ms - 1e-9, p99_ms=2.0, share=0.5),
    ]


def test_promises_of_telemetry_that_are_just_kept_are_kept():
    assert [bar.kept for bar in telemetry.bars(costs())] == [True, True, True]


@pytest.mark.parametrize("broken", [{"share": 0.969}, {"added_ms": 0.21}, {"traced_ms": 0.21}])
def test_a_promise_of_telemetry_that_was_not_kept_is_said_to_be(broken):
    assert [bar.kept for bar in telemetry.bars(costs(**broken))].count(False) == 1


def test_the_table_says_what_was_not_traced():
    assert "| on | 1.200 ms | 2.000 ms | 3,880 | 0.970 | 0.250 ms | 1,234 |" in telemetry.table(costs())


def phase(name, ratio=1.0, memory_mib=60.0):
    return collector.Phase(collector=name, requests=10, ratio=ratio, memory_mib=memory_mib, dropped={"traces": 3})


KEPT = collector.Result(
    phases=[phase("answers", 2), phase("down", 1.96), phase("never answers", 2.04, 76.0), phase("back", 2)],
    exit_s=0.5,
    troubled_exit_s=3.5,
    arrived_when_back=1,
)


def test_promises_of_a_collector_in_trouble_that_are_just_kept_are_kept():
    assert all(bar.kept for bar in collector.bars(KEPT))


@pytest.mark.parametrize(
    "broken",
    [
        {"phases": [phase("answers"), phase("down", 0.979)]},
        {"phases": [phase("answers"), phase("never answers", 1.021)]},
        {"phases": [phase("answers"), phase("back", memory_mib=76.1)]},
        {"troubled_exit_s": 3.51},
        {"arrived_when_back": 0},
    ],
)
def test_a_promise_of_a_collector_in_trouble_that_was_not_kept_is_said_to_be(broken):
    found = collector.bars(msgspec.structs.replace(KEPT, **broken))
    assert [bar.kept for bar in found].count(False) == 1
