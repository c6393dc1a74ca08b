"""How many tokens to draft next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes.engines.draft_length import DraftLength, RoundCosts


def measured(**seconds):
    """Costs with one observation for each named length: ``k0=1.0, k3=1.5``."""
    costs = RoundCosts(8)
    for name, cost_s in seconds.items():
        costs.observe(int(name[1:]), cost_s)
    return costs


def observed(length, *rounds):
    for draft_tokens, accepted in rounds:
        length.observe(draft_tokens, accepted)
    return length


def test_where_drafting_is_nearly_free_a_good_draft_is_used_to_the_full():
    length = observed(DraftLength(measured(k0=1.0, k8=1.1)), *[(8, 8)] * 20)
    assert length.choose(8) == 8


def test_where_a_draft_token_costs_a_target_token_nothing_is_drafted():
    length = observed(DraftLength(measured(k0=1.0, k8=9.0)), *[(8, 8)] * 20)
    assert length.choose(8) == 0


def test_a_draft_that_is_never_right_is_given_up_and_tried_again_after_a_while():
    length = observed(DraftLength(measured(k0=1.0, k8=2.6)), *[(4, 0)] * 20)
    assert length.choose(8) == 0
    plain_rounds = 0
    while length.choose(8) == 0:
        length.observe(0, 0)
        plain_rounds += 1
        assert plain_rounds < 500
    assert plain_rounds > 5


def test_the_worse_the_draft_the_shorter_the_round():
    costs = measured(k0=1.0, k8=2.6)
    chosen = [observed(DraftLength(costs), *[(8, accepted)] * 20).choose(8) for accepted in (8, 6, 3, 1, 0)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] > chosen[2] > chosen[-1] == 0


def test_the_estimate_follows_a_change_of_subject():
    length = observed(DraftLength(measured(k0=1.0)), *[(4, 4)] * 100)
    assert length.acceptance > 0.95
    observed(length, *[(4, 0)] * 60)
    assert length.acceptance < 0.25


def test_only_the_first_refused_token_counts_against_the_draft():
    late = observed(DraftLength(measured(k0=1.0)), (8, 4))
    early = observed(DraftLength(measured(k0=1.0)), (5, 4))
    assert late.acceptance == early.acceptance == 7 / 9


@given(
    st.dictionaries(st.integers(0, 8), st.floats(1e-6, 10)),
    st.lists(st.integers(0, 8).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k))), max_size=50),
    st.integers(0, 12),
)
def test_the_choice_is_within_the_bounds_whatever_was_seen(seconds, rounds, limit):
    costs = RoundCosts(8)
    for draft_tokens, cost_s in seconds.items():
        costs.observe(draft_tokens, cost_s)
    length = observed(DraftLength(costs), *rounds)
    assert 0 <= length.choose(limit) <= min(limit, 8)
    assert 0 <= length.acceptance <= 1


def test_a_pair_without_a_draft_never_drafts():
    assert DraftLength(RoundCosts(0)).choose(8) == 0


def test_costs_between_measured_lengths_are_interpolated_and_beyond_them_the_nearest():
    costs = measured(k2=1.0, k6=3.0)
    assert [costs.seconds(k) for k in (0, 2, 3, 4, 6, 8)] == [1.0, 1.0, 1.5, 2.0, 3.0, 3.0]
    assert RoundCosts(4).seconds(2) == 1.0


def test_costs_are_a_running_mean_that_one_hiccup_hardly_moves():
    costs = measured(k1=1.0)
    costs.observe(1, 11.0)
    assert costs.seconds(1) == pytest.approx(2.0)
    for _ in range(60):
        costs.observe(1, 1.0)
    assert costs.seconds(1) == pytest.approx(1.0, abs=0.01)
