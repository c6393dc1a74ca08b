"""Speculation draws from exactly the distribution that plain sampling has, whatever proposes.

A pair of tiny models over five tokens, so different that the draft is refused often. The probability of every answer of
four tokens follows from the target's logits, without a cache, and from the settings as they are defined (computed here
in plain Python). Engines answer with many seeds; Pearson's chi-squared test compares. Seeds, and so results, are fixed.

The test's level is one in 100,000. Its power against a deviation of w**2 (Cohen's effect size: the sum of (p' - p)**2 /
p over the answers) follows from the noncentral distribution with N * w**2: see :func:`power`, and the test of it.
"""

import math
from collections import Counter
from functools import cache
from itertools import product

import mlx.core as mx
import pytest
from mlx_lm.models.cache import trim_prompt_cache
from mlx_lm.models.llama import Model, ModelArgs

from lanes.engines import rejection, speculative_run
from lanes.engines.base import SequenceSpec, advance
from lanes.engines.draft_length import RoundCosts
from lanes.engines.speculative import SpeculativeEngine
from lanes.testing import NO_EOS
from lanes.wire import Sampling

VOCABULARY = 5
PROMPT = (0, 1, 2, 1, 3, 2, 1)
ANSWER_TOKENS = 4
MORE_TOKENS = 4  # behind the answer, so that its rounds are not cut short
DRAFT_TOKENS = 3
SAMPLES, MORE_SAMPLES = 600, 4000
LEAST_EXPECTED = 5.0
Z_LEVEL, LEVEL = 4.265, 1e-5
"""The normal distribution's quantile at 1 - level."""

CONTEXT = 8.0
"""How much more than in a fresh model what came before matters."""

SETTINGS = {
    "temperature": Sampling(temperature=0.4),
    "filters": Sampling(temperature=1.2, top_k=4, top_p=0.9, min_p=0.1),
    "penalties": Sampling(repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.6, logit_bias={4: 1.0}),
}


def model(seed, layers):
    """Weights large enough to make every context matter."""
    mx.random.seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    arguments = ModelArgs(
        model_type="llama",
        num_hidden_layers=layers,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        **sizes,
    )
    made = Model(arguments)
    made.update({"lm_head": {"weight": mx.random.normal((VOCABULARY, 16)) * 0.3}})
    made.model.update({"embed_tokens": {"weight": mx.random.normal((VOCABULARY, 16))}})
    for layer in made.layers:
        for part in (layer.self_attn.v_proj, layer.self_attn.o_proj):
            part.weight = part.weight * CONTEXT
    mx.eval(made.parameters())
    return made


@pytest.fixture(scope="module")
def tiny():
    return model(9, 2), model(10, 1)


# what should come


def softmax(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return [weight / sum(weights) for weight in weights]


def probabilities(logits, answer, s):
    """Of the next token behind ``answer``: penalties, bias, temperature, top-k, top-p, min-p."""
    adjusted = []
    for token, x in enumerate(logits):
        repeated = s.repetition_penalty if token in PROMPT + answer else 1.0
        count = answer.count(token)
        penalty = s.frequency_penalty * count + s.presence_penalty * (count > 0)
        y = (x * repeated if x < 0 else x / repeated) - penalty + s.logit_bias.get(token, 0)
        adjusted.append(y / s.temperature)
    order = sorted(range(VOCABULARY), key=lambda token: -adjusted[token])[: s.top_k or VOCABULARY]
    probs = softmax([x if token in order else -math.inf for token, x in enumerate(adjusted)])
    before = [sum(probs[token] for token in order[:place]) for place in range(len(order))]
    nucleus = [token for token, mass in zip(order, before, strict=True) if mass < s.top_p]
    kept = [token for token in nucleus if probs[token] >= s.min_p * probs[order[0]]]
    return softmax([x if token in kept else -math.inf for token, x in enumerate(adjusted)])


def expected(target, s):
    """The probability of each answer, by enumeration."""
    answers = {(): 1.0}
    for length in range(ANSWER_TOKENS):
        prefixes = list(product(range(VOCABULARY), repeat=length))
        logits = target(mx.array([PROMPT + prefix for prefix in prefixes]))[:, -1].tolist()
        answers = {
            (*prefix, token): answers[prefix] * p
            for prefix, row in zip(prefixes, logits, strict=True)
            for token, p in enumerate(probabilities(row, prefix, s))
        }
    return answers


# what comes


def drawn(engine, sampling, seeded=False, samples=SAMPLES):
    """Answers to as many seeds."""
    counts = Counter()
    settings = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    for seed in range(samples):
        own = Sampling(**{**settings, "seed": seed, "seeded": seeded})
        engine.add(SequenceSpec("a", PROMPT, ANSWER_TOKENS + MORE_TOKENS, own, DRAFT_TOKENS))
        tokens = ()
        while len(tokens) < ANSWER_TOKENS:
            for emission in advance(engine):
                assert emission.error is None
                tokens += emission.token_ids
        engine.cancel("a")
        counts[tokens[:ANSWER_TOKENS]] += 1
    return counts


def engine_of(tiny, draft=True, lookup=False):
    return SpeculativeEngine(tiny[0], tiny[1] if draft else None, NO_EOS, DRAFT_TOKENS, prompt_lookup=lookup)


def chi_squared(counts, answers):
    """The statistic and its degrees of freedom; answers too rare for the test count as one."""
    samples = sum(counts.values())
    cells = [(counts[a], samples * p) for a, p in answers.items() if samples * p >= LEAST_EXPECTED]
    rest_counted, rest_expected = samples - sum(o for o, _ in cells), samples - sum(e for _, e in cells)
    if rest_expected >= LEAST_EXPECTED:
        cells.append((rest_counted, rest_expected))
    return sum((o - e) ** 2 / e for o, e in cells), len(cells) - 1


def critical(degrees):
    """Wilson and Hilferty's approximation of the quantile at one minus the level."""
    return degrees * (1 - 2 / (9 * degrees) + Z_LEVEL * math.sqrt(2 / (9 * degrees))) ** 3


def power(degrees, effect, samples=SAMPLES):
    """Probability that a deviation of ``effect`` is found; the noncentral distribution, taken as normal."""
    noncentrality = samples * effect
    mean, deviation = degrees + noncentrality, math.sqrt(2 * (degrees + 2 * noncentrality))
    return 0.5 * math.erfc((critical(degrees) - mean) / deviation / math.sqrt(2))


def assert_same(counts, answers):
    assert all(answers[answer] > 0 for answer in counts), "what cannot come has come"
    statistic, degrees = chi_squared(counts, answers)
    assert statistic < critical(degrees), f"chi-squared {statistic:.0f} with {degrees} degrees of freedom"


@pytest.fixture(scope="module")
def answers_to(tiny):
    return cache(lambda name: expected(tiny[0], SETTINGS[name]))


@pytest.mark.parametrize(
    "name", ["filters", *(pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS if n != "filters")]
)
def test_rejection_sampling_keeps_the_targets_distribution(tiny, answers_to, name):
    assert_same(drawn(engine_of(tiny), SETTINGS[name]), answers_to(name))


def test_so_it_does_where_the_text_proposes_too_and_drafting_stops_early(tiny, answers_to, monkeypatch):
    monkeypatch.setattr(RoundCosts, "step_s", 0.15)
    engine = engine_of(tiny, lookup=True)
    counts = drawn(engine, SETTINGS["temperature"])
    assert_same(counts, answers_to("temperature"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("proposers", [(True, True), (False, True), (False, False)], ids=["both", "lookup", "none"])
@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "unseeded"])
def test_every_way_keeps_the_targets_distribution(tiny, answers_to, name, proposers, seeded):
    draft, lookup = proposers
    assert_same(drawn(engine_of(tiny, draft, lookup), SETTINGS[name], seeded, MORE_SAMPLES), answers_to(name))


# that the test can fail


@pytest.fixture
def no_residual(monkeypatch):
    monkeypatch.setattr(rejection, "residual", lambda p, q, accepted: p[accepted])


@pytest.fixture
def draft_distribution_unprocessed(monkeypatch):
    """The draft draws at the temperature; but the verification takes its logits as they came."""
    temperature = SETTINGS["temperature"].temperature
    whole = speculative_run.verify

    def verify(target, draft, *rest):
        return whole(target, [weights * temperature for weights in draft], *rest)

    monkeypatch.setattr(speculative_run, "verify", verify)


@pytest.fixture
def stale_cache_row(monkeypatch):
    monkeypatch.setattr(
        speculative_run, "trim_prompt_cache", lambda c, tokens: trim_prompt_cache(c, max(tokens - 1, 0))
    )


@pytest.mark.parametrize(
    "fault",
    [
        "draft_distribution_unprocessed",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("no_residual", "stale_cache_row")),
    ],
)
def test_a_planted_fault_is_found(tiny, answers_to, request, fault):
    request.getfixturevalue(fault)
    counts = drawn(engine_of(tiny), SETTINGS["temperature"])
    statistic, degrees = chi_squared(counts, answers_to("temperature"))
    assert statistic > 2 * critical(degrees)


def test_the_power_is_what_it_is_said_to_be(answers_to):
    """A deviation of w**2 = 0.15 is found 99 times of 100: answers that come a third too often or too seldom."""
    _, degrees = chi_squared(Counter({(): SAMPLES}), answers_to("temperature"))
    assert 20 < degrees < 60
    assert power(degrees, 0.15) > 0.99
    assert power(degrees, 0.0) < 0.01
