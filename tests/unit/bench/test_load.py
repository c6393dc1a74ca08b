"""Prompts, and how tokens and times are counted."""

import math
from itertools import islice

import pytest

from bench.client import Completion
from bench.load import (
    again_and_again,
    encoded_tokens,
    prompts,
    reported_tokens,
    seen_tokens_per_s,
    tokenizer,
    ttfts_ms,
)


def test_prompts_with_the_same_seed_are_the_same_and_no_two_begin_alike():
    first, again = (list(islice(prompts((50, 200), "seed"), 20)) for _ in range(2))
    assert first == again
    assert len({prompt.partition("\n")[0] for prompt in first}) == 20
    assert first != list(islice(prompts((50, 200), "another"), 20))


def test_prompts_are_as_long_as_was_asked():
    lengths = [len(tokenizer().encode(prompt).ids) for prompt in islice(prompts((50, 400), "seed"), 40)]
    heading = 16
    assert min(lengths) >= 45
    assert max(lengths) <= 400 + heading
    assert max(lengths) - min(lengths) > 200


def test_questions_that_are_asked_again_have_the_seeds_that_they_had_before():
    asked = list(islice(zip(*again_and_again(prompts((50, 200), "seed"), 3), strict=True), 7))
    assert len(set(asked[:3])) == 3
    assert asked == (asked[:3] * 3)[:7]


def test_encoded_tokens_are_those_of_the_text_that_came_in_time():
    count = encoded_tokens()
    answer = Completion(0.0, [(1.0, "def add"), (2.0, "(a, b):\n    return a + b\n")])
    assert count([answer], 0.0, 1.5) == len(tokenizer().encode("def add").ids)
    assert count([answer], 0.0, math.inf) == len(tokenizer().encode(answer.text).ids)


def test_a_reported_usage_is_spread_over_the_text_of_its_answer():
    answer = Completion(0.0, [(1.0, "abcd"), (2.0, "efghijkl")], 3.0, tokens=6)
    assert reported_tokens([answer], 0.0, 1.5) == 2
    assert reported_tokens([answer], 0.0, 3.0) == 6


def test_an_answer_that_was_cut_off_counts_as_the_others_do():
    whole = Completion(0.0, [(1.0, "abcd")], 2.0, tokens=2)
    cut_off = Completion(0.0, [(1.0, "abcdefgh")])
    assert reported_tokens([whole, cut_off], 0.0, 2.0) == 6


def test_answers_without_text_count_nothing():
    assert reported_tokens([Completion(0.0), Completion(0.0, ended_s=1.0, tokens=1)], 0.0, 2.0) == 0


def test_a_question_that_was_given_up_has_waited_until_then():
    answers = [Completion(1.0, [(1.25, "a")], 2.0), Completion(3.0)]
    assert ttfts_ms(answers, 10.0) == [250.0, 7000.0]


def test_tokens_are_seen_at_the_rate_at_which_they_were_waited_for():
    answers = [Completion(1.0, [(1.25, "a")], 2.0, tokens=9), Completion(3.0)]
    assert seen_tokens_per_s(answers, reported_tokens, 5.0) == pytest.approx(3.0)
