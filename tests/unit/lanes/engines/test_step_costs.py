import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes.engines.step_costs import (
    AIM,
    AS_GOOD,
    CARRIED_ROWS,
    LEAST_CARRIED,
    SIZES,
    UNMEASURED_TOKENS,
    WORTH_SPLITTING,
    Line,
    StepCosts,
)

WEIGHTS_S, CACHE_TOKEN_S = 0.016, 2e-6
TOKEN_S, ATTENDED_TOKEN_S = 6e-4, 5e-7


def decode_s(cache_tokens):
    return WEIGHTS_S + CACHE_TOKEN_S * cache_tokens


def chunk_s(tokens, attended):
    return WEIGHTS_S + tokens * (TOKEN_S + ATTENDED_TOKEN_S * attended)


def learned():
    costs = StepCosts()
    for round_ in range(200):
        costs.decoded(100 + 97 * round_ % 8000, decode_s(100 + 97 * round_ % 8000))
        attended = 64 + 113 * round_ % 2000
        costs.prefilled(64, attended, chunk_s(64, attended))
    return costs


def test_a_line_is_found_through_its_points():
    line = Line()
    for x in (5, 1, 9, 4, 7):
        line.observe(x, 3 + 2 * x)
    assert (line.slope, line.intercept) == (pytest.approx(2), pytest.approx(3))
    assert line.at(100) == pytest.approx(203)


def test_before_any_point_a_line_is_zero_and_with_one_x_it_is_flat():
    line = Line()
    assert not line.known
    assert line.at(7) == 0
    for _ in range(3):
        line.observe(50, 0.02)
    assert line.known
    assert line.at(5000) == pytest.approx(0.02)


def test_neither_slope_nor_intercept_is_negative():
    falling, steep = Line(), Line()
    for x in (10, 20, 30, 40):
        falling.observe(x, 50 - x)
        steep.observe(x, max(2 * x - 15, 1))
    assert falling.slope == 0
    assert steep.intercept >= 0


def test_a_first_step_that_compiled_for_seconds_is_forgotten_at_once():
    line = Line()
    line.observe(100, 3.7)
    line.observe(110, 0.02)
    assert line.at(100) == pytest.approx(0.02)


def test_a_hiccup_counts_as_twice_the_expected_at_most():
    line = Line()
    for x in range(10, 60):
        line.observe(x, 0.02)
    line.observe(30, 5.0)
    assert line.at(30) < 0.022


@pytest.mark.parametrize("kept", [0.0, 3.0])
def test_what_is_known_of_other_places_holds_a_line_there(kept):
    line = Line(kept)
    for _ in range(5):
        line.observe(20, 0.01)
    for number in range(500):
        x = 6000 + 37 * number % 2000
        line.observe(x, 0.012 * x / 7000)  # noise that looks like a slope
    assert (line.intercept > 0.008) == (kept > 0)
    assert line.at(7000) == pytest.approx(0.012, rel=0.1)


def test_what_is_known_of_other_places_does_not_survive_a_machine_that_got_faster():
    line = Line(3.0)
    for x in (20, 7000):
        for _ in range(5):
            line.observe(x, 0.1)
    for _ in range(5):
        line.observe(7000, 0.01)
    assert line.at(20) == pytest.approx(0.01)


def test_a_chunk_is_never_learnt_to_cost_nothing():
    costs = StepCosts()
    costs.decoded(1000, 0.05)
    for _ in range(20):
        costs.prefilled(16, 16, 0.02)  # less than what is taken for the constant part
    assert costs.chunk_s(16, 16) - costs.chunk_s(0, 16) == pytest.approx(0.01)


def test_before_any_measurement_the_chunk_is_a_cautious_one():
    assert StepCosts().chunk_tokens(0, 10.0) == UNMEASURED_TOKENS


@given(st.integers(0, 4000), st.floats(0.0, 1.0))
def test_a_chunk_stays_within_its_limit_and_gets_most_done(offset, limit_s):
    chosen = learned().chunk_tokens(offset, limit_s)
    fitting = [size for size in SIZES if chunk_s(size, offset + size) <= limit_s]
    margin = 1.02  # a line that is learnt comes near the true one
    assert chosen == SIZES[0] or chunk_s(chosen, offset + chosen) <= limit_s * margin
    best_s = min((chunk_s(size, offset + size) / size for size in fitting), default=None)
    if best_s is not None:
        assert chunk_s(chosen, offset + chosen) / chosen <= best_s * AS_GOOD * margin


def test_chunks_get_smaller_behind_a_long_prompt():
    costs = learned()
    assert costs.chunk_tokens(4000, 0.1) < costs.chunk_tokens(0, 0.1)


def test_sequences_of_like_length_go_together():
    batches = [(4, 200), (4, 2000)]
    costs = learned()
    assert costs.place(210, batches, 1.0) == 0
    assert costs.place(1900, batches, 1.0) == 1


def test_a_batch_is_not_split_for_what_may_be_noise():
    costs = StepCosts()
    for tokens in range(500, 8000, 100):
        costs.decoded(tokens, 0.010 + 8e-6 * tokens)
    assert costs.place(950, [(5, 400)], 1.0) == 0  # 30 ms more, where its own steps would take 18
    assert costs.place(1500, [(5, 400)], 1.0) is None  # 56 ms and 22


def test_of_batches_that_fit_as_well_the_small_one_is_left_to_end():
    assert learned().place(150, [(2, 150), (20, 200)], 1.0) == 1


def test_a_batch_whose_step_would_get_too_long_takes_nobody_in():
    costs = learned()
    limit_s = decode_s(10 * 2000) / AIM
    assert costs.place(2000, [(9, 2000)], limit_s) == 0
    assert costs.place(2000, [(10, 2000)], limit_s) is None


def heavy():
    """Of a model whose weights alone take 30 ms."""
    costs = StepCosts()
    for tokens in range(100, 6000, 100):
        costs.decoded(tokens, 0.03 + 1e-6 * tokens)
    return costs


def test_a_bound_that_no_step_keeps_leaves_one_batch_as_long_as_the_weights_are_most_of_a_step():
    assert heavy().longest_s(500, 0.01) == pytest.approx(WORTH_SPLITTING * 0.03)
    assert heavy().place(500, [(30, 500)], 0.01) == 0
    assert heavy().place(500, [(90, 500)], 0.01) is None


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(1, 2000), st.floats(0.033, 1.0))
def test_a_bound_that_each_sequence_keeps_by_itself_is_kept_by_every_batch(length, sequences, longest, limit_s):
    costs = heavy()
    joined = costs.place(length, [(sequences, longest)], limit_s) == 0
    assert not joined or costs.decode_s((sequences + 1) * max(longest, length)) <= AIM * limit_s


def test_nothing_measured_means_one_batch():
    assert StepCosts().place(500, [(3, 100)], 0.05) == 0
    assert StepCosts().place(500, [], 0.05) is None


def carrying(share):
    """What is known after many steps whose chunks took so much of what they take alone."""
    costs = learned()
    for _ in range(200):
        for tokens, attended in ((16, 200), (24, 600)):
            alone_s = tokens * (costs.chunk_s(1, attended) - costs.chunk_s(0, attended))
            costs.carried(2000, tokens, attended, costs.decode_s(2000) + share * alone_s)
    return costs


@given(st.sampled_from([0.2, 0.5, 1.0]), st.integers(1, 40), st.integers(1, 2000), st.floats(0.0, 1.0))
def test_a_decode_step_carries_what_fits_into_its_limit(share, sequences, longest, limit_s):
    costs = carrying(share)
    tokens = costs.carried_tokens(sequences, longest, 100, limit_s)
    assert tokens == 0 or sequences + tokens in CARRIED_ROWS
    decode_s = costs.decode_s(sequences * longest)
    token_s = share * (costs.chunk_s(1, 100 + tokens) - costs.chunk_s(0, 100 + tokens))
    longest_s = AIM * costs.longest_s(longest, limit_s)
    assert tokens == 0 or decode_s + tokens * token_s <= 1.01 * longest_s


def test_the_less_a_chunk_adds_to_a_decode_step_the_larger_it_is():
    assert carrying(0.2).carried_tokens(8, 300, 0, 0.05) > carrying(1.0).carried_tokens(8, 300, 0, 0.05)


def test_nothing_is_carried_before_any_measurement_nor_by_a_batch_that_is_large_itself():
    assert StepCosts().carried_tokens(8, 300, 0, 1.0) == 0
    assert learned().carried_tokens(CARRIED_ROWS[-1], 300, 0, 1.0) == 0


def test_steps_that_scatter_never_make_a_chunk_cost_nothing():
    costs = learned()
    for _ in range(500):
        costs.carried(2000, 16, 200, 0.0)
    least = carrying(LEAST_CARRIED)
    for offset in (100, 1000, 4000):
        assert costs.carried_tokens(8, 300, offset, 0.03) == least.carried_tokens(8, 300, offset, 0.03)
