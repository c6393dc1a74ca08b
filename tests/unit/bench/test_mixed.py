"""What is said about a run of `bench mixed`."""

import pytest

from bench.mixed import COLUMNS, Load, Row, bars, table

ONE = Load(background=(8,))


def row(server, background=8, **figures):
    return Row(
        **{
            "server": server,
            "background": background,
            "asked_idle": 24,
            "asked_busy": 30,
            "given_up": 0,
            "ttft_idle_ms": 80.0,
            "ttft_idle_p95_ms": 100.0,
            "ttft_busy_ms": 120.0,
            "ttft_busy_p95_ms": 180.0,
            "ttft_busy_worst_ms": 300.0,
            "busy_to_idle": 1.5,
            "busy_p95_to_idle": 2.25,
            "interactive_idle_tokens_per_s": 90.0,
            "interactive_busy_tokens_per_s": 80.0,
            "background_solo_tokens_per_s": 100.0,
            "background_busy_tokens_per_s": 20.0,
            **figures,
        }
    )


def test_the_better_peer_is_the_one_that_counts_in_each_promise():
    slow = row("slow", ttft_busy_ms=9000.0, busy_to_idle=100.0, interactive_busy_tokens_per_s=30.0)
    quick = row("quick", ttft_busy_ms=600.0, busy_to_idle=4.13, interactive_busy_tokens_per_s=10.0)
    found = {bar.promise: bar for bar in bars([row("ours"), slow, quick], ONE)}
    assert found["better peer's TTFT busy : ours, 8 streams"].measured == 5.0
    assert found["our interactive tokens/s busy : better peer's, 8 streams"].measured == pytest.approx(2.667)
    assert found["TTFT busy : idle, 8 streams (better peer's: 4.13)"].measured == 1.5
    assert all(bar.kept for bar in found.values())


@pytest.mark.parametrize(
    "figures",
    [
        {"busy_to_idle": 1.51},
        {"busy_p95_to_idle": 2.51},
        {"interactive_busy_tokens_per_s": 67.0},
        {"background_busy_tokens_per_s": 10.0},
    ],
)
def test_a_promise_that_was_not_kept_is_said_to_be(figures):
    assert [bar.kept for bar in bars([row("ours", **figures)], ONE)].count(False) == 1


def test_each_number_of_streams_is_held_against_peers_with_as_many():
    rows = [row("ours", 8), row("ours", 32, ttft_busy_ms=200.0), row("peer", 8, ttft_busy_ms=600.0), row("peer", 32)]
    found = {bar.promise: bar.measured for bar in bars(rows, Load(background=(8, 32)))}
    assert found["better peer's TTFT busy : ours, 8 streams"] == 5.0
    assert found["better peer's TTFT busy : ours, 32 streams"] == 0.6


def test_a_peer_that_said_nothing_beside_the_background_is_infinitely_slower():
    silent = row("silent", ttft_busy_ms=9000.0, interactive_busy_tokens_per_s=0.0)
    assert all(bar.kept for bar in bars([row("ours"), silent], ONE))


def test_the_table_has_a_cell_for_each_column_and_a_line_for_each_row():
    lines = table([row("ours", 8), row("ours", 32), row("peer", 8, given_up=1)]).splitlines()
    assert len(lines) == 5
    assert all(line.count("|") == len(COLUMNS) + 1 for line in lines)


def test_times_of_questions_that_were_given_up_are_said_to_be_lower_bounds():
    answered, given_up = table([row("answered"), row("given up", given_up=1)]).splitlines()[2:]
    assert "≥" not in answered
    assert "≥ 120 ms" in given_up


def test_peers_are_asked_the_same_for_less_time():
    load = Load()
    peers = load.for_peers()
    assert peers.busy_s < load.busy_s
    assert peers.background_prompt_tokens == load.background_prompt_tokens
