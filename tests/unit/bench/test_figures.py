import math

import pytest

from bench.cli import main
from bench.client import Completion
from bench.mixed import COLUMNS, Load, Row, bars, table
from bench.statistics import median, quantile


def row(server, **figures):
    return Row(
        **{
            "server": server,
            "ttft_idle_ms": 80.0,
            "ttft_busy_ms": 120.0,
            "ttft_busy_p95_ms": 180.0,
            "ttft_busy_worst_ms": 300.0,
            "busy_to_idle": 1.5,
            "interactive_idle_tokens_per_s": 90.0,
            "interactive_busy_tokens_per_s": 80.0,
            "background_solo_tokens_per_s": 100.0,
            "background_busy_tokens_per_s": 20.0,
            "background_kept": 0.2,
            **figures,
        }
    )


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1), (0.2, 1), (0.21, 2), (0.5, 3), (0.95, 5), (1.0, 5)])
def test_a_quantile_is_one_of_the_values_and_enough_of_them_do_not_exceed_it(q, expected):
    assert quantile([5, 1, 4, 2, 3], q) == expected


def test_the_median_of_nothing_is_not_a_number():
    assert math.isnan(median([]))


def test_an_answer_without_text_has_no_time_to_first_token():
    assert Completion(1.0).ttft_s is None


def test_text_counts_in_the_window_in_which_it_arrived():
    answer = Completion(1.0, [(2.0, "a"), (3.0, "b"), (4.0, "c")])
    assert answer.ttft_s == 1.0
    assert answer.text == "abc"
    assert answer.text_between(2.0, 4.0) == "ab"


def test_the_better_peer_is_the_one_that_counts_in_each_promise():
    slow = row("slow", ttft_busy_ms=9000.0, interactive_busy_tokens_per_s=30.0)
    quick = row("quick", ttft_busy_ms=600.0, interactive_busy_tokens_per_s=10.0)
    found = {bar.promise: bar for bar in bars([row("ours"), slow, quick], Load())}
    assert found["better peer's TTFT busy : ours"].measured == 5.0
    assert found["our interactive tokens/s busy : better peer's"].measured == pytest.approx(80 / 30, abs=1e-3)
    assert all(bar.kept for bar in found.values())


@pytest.mark.parametrize("figures", [{"busy_to_idle": 2.1}, {"background_kept": 0.1}])
def test_a_promise_that_was_not_kept_is_said_to_be(figures):
    assert [bar.kept for bar in bars([row("ours", **figures)], Load())].count(False) == 1


def test_the_table_has_a_cell_for_each_column_and_a_line_for_each_server():
    lines = table([row("ours"), row("peer")]).splitlines()
    assert len(lines) == 4
    assert all(line.count("|") == len(COLUMNS) + 1 for line in lines)


def test_a_benchmark_must_be_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "BENCHMARK" in capsys.readouterr().err
