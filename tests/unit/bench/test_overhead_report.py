"""What is said about a run of `bench overhead`."""

import pytest

from bench.overhead_report import Added, Way, bars, table


def ways(**ours):
    rates = {1: 600.0, 32: 3000.0, 256: 3000.0}
    return [
        Way(
            **{
                "name": "opta-router",
                "median_ms": 0.9,
                "p99_ms": 1.5,
                "adds": Added("echo", 0.6, 1.0),
                "requests_per_s": rates,
                "cpu_ms_per_request": {"router": 0.25, "host": 0.05},
                "stream_tokens_per_s": 100_000.0,
                **ours,
            }
        ),
        Way(name="echo", median_ms=0.3, p99_ms=0.5, requests_per_s={n: rate * 2 for n, rate in rates.items()}),
        Way(name="LiteLLM", median_ms=9, p99_ms=20, requests_per_s={n: rate / 5 for n, rate in rates.items()}),
        Way(name="engine", median_ms=0.2, p99_ms=0.3),
    ]


def test_promises_that_are_just_kept_are_kept():
    found = bars(ways())
    assert [bar.kept for bar in found] == [True] * 6
    assert {bar.bound for bar in found} == {1.0, 0.5, 5.0}


@pytest.mark.parametrize(
    ("ours", "broken"),
    [({"median_ms": 1.31}, 1), ({"requests_per_s": {1: 600.0, 32: 2999.0, 256: 3000.0}}, 2)],
)
def test_a_promise_that_was_not_kept_is_said_to_be(ours, broken):
    assert [bar.kept for bar in bars(ways(**ours))].count(False) == broken


def test_without_litellm_nothing_is_said_about_it():
    assert [bar for bar in bars([way for way in ways() if way.name != "LiteLLM"]) if "LiteLLM" in bar.promise] == []


def test_the_table_has_a_line_for_each_way_and_a_cell_for_each_column():
    lines = table(ways()).splitlines()
    assert len(lines) == 6
    assert len({line.count("|") for line in lines}) == 1
    assert "0.60 ms, p99 1.00 ms, to `echo`" in lines[2]
