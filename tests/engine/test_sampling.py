"""The sampler draws from exactly the distribution that its settings define.

Each case compares the frequencies of many independent draws with probabilities computed here in plain Python, by
Pearson's chi-squared test at one chance in a million; keys and so draws are fixed.
"""

import math
from collections import Counter

import mlx.core as mx
import pytest

from lanes.engines.sampling import TokenChooser, noise_key
from lanes.wire import Sampling

LOGITS = [2.0, 1.5, 0.0, -0.5, 1.0, -3.0, 0.7, 0.69]
PROMPT, ANSWER = [0, 5, 5], [1, 1, 4]
DRAWS = 4000
CRITICAL = {1: 23.9, 2: 27.6, 3: 30.7, 4: 33.4, 5: 35.9, 6: 38.3, 7: 40.5}
"""Chi-squared at p = 1e-6 for each number of degrees of freedom."""


def softmax(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return [weight / sum(weights) for weight in weights]


def penalised(logits, s):
    """vLLM's penalties: repetition over prompt and answer, the others over the answer alone."""
    out = []
    for token, x in enumerate(logits):
        y = x
        if token in PROMPT + ANSWER:
            y = y * s.repetition_penalty if y < 0 else y / s.repetition_penalty
        count = ANSWER.count(token)
        out.append(y - s.frequency_penalty * count - s.presence_penalty * (count > 0) + s.logit_bias.get(token, 0))
    return out


def expected(s):
    """Probabilities after penalties, bias, temperature, top-k, top-p and min-p, in this order."""
    logits = [x / s.temperature for x in penalised(LOGITS, s)]
    kept = set(range(len(logits)))
    if s.top_k:
        kept = set(sorted(kept, key=lambda t: -logits[t])[: s.top_k])
    probs = restricted(logits, kept)
    mass, nucleus = 0.0, set()
    for token in sorted(kept, key=lambda t: -probs[t]):
        if mass < s.top_p:
            nucleus.add(token)
        mass += probs[token]
    probs = restricted(logits, nucleus)
    kept = {token for token in nucleus if probs[token] >= s.min_p * max(probs)}
    return restricted(logits, kept)


def restricted(logits, kept):
    return softmax([x if token in kept else -math.inf for token, x in enumerate(logits)])


def draws(s):
    """Tokens chosen at ``DRAWS`` consecutive positions, each from the same logits."""
    chooser = TokenChooser(s, len(PROMPT))
    if not chooser.needs_history:
        rows = mx.broadcast_to(mx.array(LOGITS), (DRAWS, len(LOGITS)))
        return chooser.choose(rows, 0).tolist()
    history = mx.array(PROMPT + ANSWER)
    chosen = [chooser.choose(mx.array([LOGITS]), position, history) for position in range(DRAWS)]
    return mx.concatenate(chosen).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7, "seed": 2**63 - 1},
        {"top_k": 3},
        {"top_k": 100},
        {"top_p": 0.7},
        {"top_p": 0.01},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.85, "min_p": 0.3, "temperature": 0.9},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 0.6},
        {"frequency_penalty": -0.4, "presence_penalty": 0.3, "repetition_penalty": 1.2, "top_p": 0.9},
        {"logit_bias": {2: 2.0, 0: -100.0}},
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(settings):
    sampling = Sampling(**{"temperature": 1.0, "seed": 3, **settings})
    probabilities = expected(sampling)
    counts = Counter(draws(sampling))
    assert all(probabilities[token] > 0 for token in counts)
    possible = [token for token, p in enumerate(probabilities) if p > 0]
    if len(possible) == 1:
        assert counts[possible[0]] == DRAWS
        return
    chi_squared = sum((counts[t] - DRAWS * probabilities[t]) ** 2 / (DRAWS * probabilities[t]) for t in possible)
    assert chi_squared < CRITICAL[len(possible) - 1]


def test_the_expected_distribution_of_the_filters_is_what_their_definitions_say():
    assert sum(p > 0 for p in expected(Sampling(top_k=3))) == 3
    assert sum(p > 0 for p in expected(Sampling(top_p=0.01))) == 1
    assert [t for t, p in enumerate(expected(Sampling(min_p=0.2))) if p > 0] == [0, 1, 4, 6, 7]


@pytest.mark.parametrize(
    "settings",
    [{}, {"presence_penalty": 5.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 4.0}, {"logit_bias": {3: 9.0}}],
    ids=str,
)
def test_greedy_takes_the_largest_logit_after_penalties_and_bias(settings):
    sampling = Sampling(temperature=0.0, **settings)
    chooser = TokenChooser(sampling, len(PROMPT))
    logits = penalised(LOGITS, sampling)
    assert chooser.choose(mx.array([LOGITS]), 6, mx.array(PROMPT + ANSWER)).tolist() == [logits.index(max(logits))]


def test_a_token_depends_on_its_seed_and_position_and_not_on_how_many_are_chosen_at_once():
    chooser = TokenChooser(Sampling(seed=9), 0)
    rows = mx.broadcast_to(mx.array(LOGITS), (50, len(LOGITS)))
    together = chooser.choose(rows, 100).tolist()
    one_by_one = [chooser.choose(rows[:1], 100 + i).tolist()[0] for i in range(50)]
    assert together == one_by_one
    assert together != TokenChooser(Sampling(seed=10), 0).choose(rows, 100).tolist()
    assert together != chooser.choose(rows, 101).tolist()


def test_neighbouring_seeds_and_positions_have_unrelated_keys():
    keys = {noise_key(seed, position) for seed in range(300) for position in range(300)}
    assert len(keys) == 300 * 300
    assert all(0 <= key < 2**64 for key in keys)


def test_penalties_without_a_history_are_an_error_and_not_a_silent_nothing():
    with pytest.raises(ValueError, match="history"):
        TokenChooser(Sampling(presence_penalty=1.0), 0).choose(mx.array([LOGITS]), 0)
