"""One model, one answer: whichever lane gives it, and however much of it was drafted."""

from itertools import cycle

import pytest

from lanes import embedded
from lanes.engines.base import SequenceSpec
from lanes.engines.draft_length import DraftLength
from lanes.engines.speculative import SpeculativeEngine
from lanes.engines.throughput import ThroughputEngine
from lanes.host.text import TextStream
from lanes.testing import GREEDY, Driver
from lanes.wire import Sampling

ANSWER_TOKENS = 24
PROMPTS = 10
SETTINGS = [
    Sampling(temperature=0.8, seed=5),
    Sampling(temperature=0.8, seed=2**63 - 1, top_k=20, top_p=0.9, min_p=0.02, frequency_penalty=0.3),
]


def answers(engine, prompts, sampling, num_draft_tokens=0):
    driver = Driver(engine)
    started = [
        driver.add(SequenceSpec(str(i), prompt, ANSWER_TOKENS, sampling, num_draft_tokens))
        for i, prompt in enumerate(prompts)
    ]
    driver.finish()
    return started


@pytest.fixture(scope="module")
def speculative(pair):
    return SpeculativeEngine(pair.target, pair.draft, pair.eos, 8)


@pytest.fixture(scope="module")
def throughput(pair):
    return ThroughputEngine(pair.target, pair.eos, 4)


def test_greedy_answers_are_the_same_with_and_without_a_draft_and_in_the_throughput_lane(
    held_out, speculative, throughput
):
    prompts = held_out[:PROMPTS]
    plain = answers(speculative, prompts, GREEDY)
    drafted = answers(speculative, prompts, GREEDY, num_draft_tokens=4)
    batched = answers(throughput, prompts, GREEDY)
    for one, two, three in zip(plain, drafted, batched, strict=True):
        assert one.token_ids == two.token_ids == three.token_ids
        assert one.finish == two.finish == three.finish
    counters = [answer.counters for answer in drafted]
    assert sum(c.accepted for c in counters) > sum(c.rejected for c in counters)


@pytest.mark.parametrize(
    "sampling", [pytest.param(SETTINGS[0], marks=pytest.mark.slow), SETTINGS[1]], ids=["plain", "filtered"]
)
def test_a_sampled_answer_is_the_same_for_every_draft_length_and_in_the_throughput_lane(
    held_out, speculative, throughput, sampling
):
    prompts = held_out[:3]
    expected = [answer.token_ids for answer in answers(throughput, prompts, sampling)]
    for num_draft_tokens in (0, 1, 8):
        drafted = answers(speculative, prompts, sampling, num_draft_tokens)
        assert [answer.token_ids for answer in drafted] == expected


def test_a_prompt_whose_last_chunk_is_padded_gets_the_same_answer(pair, held_out, throughput):
    padding = ThroughputEngine(pair.target, pair.eos, 4, pads_chunks=True)
    for sampling in (GREEDY, SETTINGS[0]):
        plain, padded = answers(throughput, held_out[:5], sampling), answers(padding, held_out[:5], sampling)
        assert [answer.token_ids for answer in padded] == [answer.token_ids for answer in plain]


def test_an_answer_is_the_same_when_its_draft_length_changes_from_round_to_round(
    held_out, speculative, throughput, monkeypatch
):
    lengths = cycle([3, 0, 1, 5, 0, 0, 2, 8])
    monkeypatch.setattr(DraftLength, "choose", lambda self, limit: min(limit, next(lengths)))
    for sampling in (GREEDY, *SETTINGS):
        expected = [answer.token_ids for answer in answers(throughput, held_out[3:5], sampling)]
        drafted = answers(speculative, held_out[3:5], sampling, num_draft_tokens=8)
        assert [answer.token_ids for answer in drafted] == expected


def test_a_draft_that_shares_the_targets_noise_is_often_right_at_a_temperature(held_out, speculative):
    counters = [answer.counters for answer in answers(speculative, held_out[:3], SETTINGS[0], num_draft_tokens=3)]
    compared = sum(c.accepted + c.rejected for c in counters)
    assert compared > 20
    assert sum(c.accepted for c in counters) / compared > 0.25


def test_an_answer_goes_on_elsewhere_as_it_would_have_gone_on_here(held_out, speculative, throughput):
    whole = answers(throughput, held_out[:1], SETTINGS[0])[0]
    emitted = ANSWER_TOKENS // 2
    resumed = Driver(speculative)
    rest = resumed.add(
        SequenceSpec("resumed", (*held_out[0], *whole.token_ids[:emitted]), ANSWER_TOKENS - emitted, SETTINGS[0], 3)
    )
    resumed.finish()
    assert rest.token_ids == whole.token_ids[emitted:]


def test_the_real_tokenizers_text_streams_without_loss(pair):
    for held in embedded.held_out_prompts()[:PROMPTS]:
        text = held.prompt + " # \u00e9\u4e2d\U0001f980"
        stream = TextStream(pair.tokenizer)
        pieces = [stream.push((token,)).text for token in pair.tokenizer.encode(text, add_special_tokens=False)]
        assert "".join(pieces) + stream.finish() == text
