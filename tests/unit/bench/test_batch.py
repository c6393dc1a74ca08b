"""What is said about a run of `bench batch`."""

import math

from bench.batch import Row, bars, table


def rows():
    return [Row("ours", {1: [40.0, 44.0], 8: [100.0, 120.0]}), Row("peer", {1: [42.0], 8: [80.0]})]


def test_it_is_the_mean_of_all_rounds_that_counts():
    ours, peer = rows()
    assert (ours.mean(1), ours.mean(8), peer.mean(8)) == (42.0, 110.0, 80.0)


def test_each_peer_is_a_bound_with_each_number_of_streams():
    found = {bar.promise: (bar.measured, bar.kept) for bar in bars(rows())}
    assert found == {
        "tokens/s : peer's, 1 streams": (1.0, True),
        "tokens/s : peer's, 8 streams": (1.375, True),
    }


def test_a_peer_that_is_faster_breaks_the_promise():
    ours, _ = rows()
    assert [bar.kept for bar in bars([ours, Row("peer", {1: [43.0], 8: [80.0]})])] == [False, True]


def test_the_table_has_a_line_for_each_server_and_shows_both_times():
    lines = table(rows()).splitlines()
    assert len(lines) == 4
    assert "42.0 (40.0, 44.0)" in lines[2]


def test_a_peer_that_delivers_nothing_is_outdone_whatever_ours_delivers():
    ours, peer = Row("ours", {32: [10.0, 12.0]}), Row("peer", {32: [0.0]})
    (bar,) = bars([ours, peer])
    assert bar.kept
    assert bar.measured == math.inf
