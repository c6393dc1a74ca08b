import math

import pytest

from bench.cli import main
from bench.client import Completion
from bench.statistics import median, quantile


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


def test_a_benchmark_must_be_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "BENCHMARK" in capsys.readouterr().err
