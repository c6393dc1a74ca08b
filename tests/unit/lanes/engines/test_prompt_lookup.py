"""What followed the same tokens before."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes.engines.prompt_lookup import EVIDENCE_TOKENS, SIZES, PromptLookup, prior


def lookup(prompt, answer=()):
    made = PromptLookup()
    made.extend(prompt, answer=False)
    made.extend(answer, answer=True)
    return made


def test_what_followed_the_last_tokens_before_is_proposed():
    assert lookup([1, 2, 3, 4, 5, 9, 1, 2, 3]).propose(2) == [4, 5]


def test_text_that_was_never_there_proposes_nothing():
    made = lookup([1, 2, 3, 4, 5])
    assert (made.matched, made.propose(3), made.expected_tokens(3)) == (0, [], [1.0])


def test_the_longer_run_decides_where_two_places_match():
    assert lookup([1, 2, 3, 4, 7, 9, 3, 4, 8, 1, 2, 3, 4]).propose(1) == [7]


def test_of_two_places_that_match_alike_the_later_is_copied():
    assert lookup([1, 2, 5, 1, 2, 6, 1, 2]).propose(1) == [6]


def test_the_answer_is_looked_up_too():
    assert lookup([1, 2], [3, 4, 5, 6, 3, 4]).propose(2) == [5, 6]


def test_a_repetition_is_proposed_beyond_the_end_of_the_text():
    assert lookup([1, 2, 1, 2]).propose(5) == [1, 2, 1, 2, 1]
    assert lookup([8, 8, 8]).propose(3) == [8, 8, 8]


def test_a_copy_is_followed_through_runs_that_stand_elsewhere_too():
    text = [1, 2, 3, 4, 5, 6, 7]
    made = lookup([*text, 9, 3, 4, 8, 9, 1, 2])
    made.extend(text[2:4], answer=True)  # 3, 4 came last with 8 behind
    assert (made.matched, made.propose(2)) == (4, [5, 6])


def test_after_what_differs_the_copy_is_found_again():
    made = lookup([1, 2, 3, 4, 5, 6, 7, 0], [1, 2, 9, 4, 5])
    assert made.propose(2) == [6, 7]


def test_the_longer_a_copy_the_more_it_is_worth():
    assert [prior(n) for n in (2, 4, 8)] == sorted(prior(n) for n in (2, 4, 8))
    made = lookup([*range(40), 99, *range(30)])
    assert made.expected_tokens(8)[-1] > lookup([*range(40), 99, 0, 1]).expected_tokens(8)[-1]


def test_answers_that_do_not_copy_make_copies_worth_less_and_prompts_teach_nothing():
    prompt = [token for i in range(50) for token in (1, 2, 100 + i)]
    assert lookup(prompt).acceptance(2) == pytest.approx(prior(2))
    answer = [token for i in range(50) for token in (1, 2, 200 + i)]
    assert lookup(prompt, answer).acceptance(2) < 0.05


def test_what_was_learnt_fades():
    """Runs of two that are never gone on with, then as many that are, each once."""
    made = lookup([], [token for i in range(100) for token in (1, 2, 200 + i)])
    assert made.acceptance(2) < 0.1
    made.extend([token for i in range(100) for token in (1, 2, 299, 400 + i)], answer=True)
    assert made.acceptance(2) > 0.5
    assert EVIDENCE_TOKENS < 100


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_a_proposal_is_what_stood_behind_an_earlier_occurrence(prompt, answer, limit):
    made, text = lookup(prompt, answer), prompt + answer
    proposed = made.propose(limit)
    assert len(made) == len(text)
    assert len(proposed) == (limit if made.matched else 0)
    expected = made.expected_tokens(limit)
    assert all(0 <= more - less <= 1 for less, more in pairwise(expected))
    if not made.matched:
        shortest = tuple(text[-SIZES[-1] :])
        runs = {tuple(text[i : i + len(shortest)]) for i in range(len(text) - len(shortest))}
        assert len(text) <= SIZES[-1] or shortest not in runs
        return
    run = text[-made.matched :]
    whole = text + proposed
    starts = [i for i in range(len(text) - len(run)) if whole[i : i + len(run)] == run]
    assert any(whole[i + len(run) : i + len(run) + limit] == proposed for i in starts)
