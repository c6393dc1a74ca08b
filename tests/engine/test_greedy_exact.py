"""Greedy speculation gives the tokens of plain decoding, over the prompts of the benchmarks, whoever proposes."""

from functools import cache

import pytest

from bench.prompts import CLASSES, load
from lanes.engines.base import SequenceSpec
from lanes.engines.prompt_caches import PromptCaches, PromptMemory
from lanes.engines.speculative import SpeculativeEngine
from lanes.testing import GREEDY, NO_EOS, Driver

TOKENS, MORE_TOKENS = 24, 128
MAX_DRAFT_TOKENS = 8
PROPOSERS = {"draft model": (True, False), "prompt lookup": (False, True), "both": (True, True)}


@pytest.fixture(scope="module")
def tokens_of(pair):
    def tokens(prompt):
        if prompt.text is not None:
            return tuple(pair.tokenizer.encode(prompt.text))
        return tuple(pair.tokenizer.apply_chat_template(prompt.chat(), add_generation_prompt=True))

    return tokens


def answer(engine, prompt, tokens, num_draft_tokens):
    driver = Driver(engine)
    given = driver.add(SequenceSpec("greedy", prompt, tokens, GREEDY, num_draft_tokens))
    driver.finish()
    return given


@pytest.fixture(scope="module")
def plain(pair):
    engine = SpeculativeEngine(pair.target, None, NO_EOS, 0)
    return cache(lambda prompt, tokens: answer(engine, prompt, tokens, 0).token_ids)


@pytest.fixture(scope="module")
def engine_of(pair):
    def make(draft, lookup):
        return SpeculativeEngine(
            pair.target, pair.draft if draft else None, NO_EOS, MAX_DRAFT_TOKENS, prompt_lookup=lookup
        )

    return cache(make)


@pytest.mark.parametrize("proposers", PROPOSERS.values(), ids=PROPOSERS)
def test_a_prompt_of_each_class_is_answered_as_by_plain_decoding(tokens_of, plain, engine_of, proposers):
    proposed = 0
    for number, name in enumerate(CLASSES):
        prompt = tokens_of(load()[name][number])
        given = answer(engine_of(*proposers), prompt, TOKENS, (3, 8, 1, 5)[number])
        assert given.token_ids == plain(prompt, TOKENS), name
        proposed += given.counters.proposed
    assert proposed > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_draft_tokens", range(MAX_DRAFT_TOKENS + 1))
@pytest.mark.parametrize("proposers", PROPOSERS.values(), ids=PROPOSERS)
def test_every_prompt_is_answered_as_by_plain_decoding(tokens_of, plain, engine_of, proposers, num_draft_tokens):
    for name, prompts in load().items():
        for prompt in map(tokens_of, prompts):
            given = answer(engine_of(*proposers), prompt, MORE_TOKENS, num_draft_tokens)
            assert given.token_ids == plain(prompt, MORE_TOKENS), name


def test_so_it_is_behind_what_an_earlier_answer_left(pair, tokens_of, plain):
    caches = PromptCaches(PromptMemory(1 << 30))
    engine = SpeculativeEngine(
        pair.target, pair.draft, NO_EOS, MAX_DRAFT_TOKENS, prompt_lookup=True, prompt_caches=caches
    )
    prompt = tokens_of(load()["editing"][0])
    cold = answer(engine, prompt, TOKENS, 4)
    computed = engine.computed_tokens
    warm = answer(engine, prompt, TOKENS, 4)
    assert cold.token_ids == warm.token_ids == plain(prompt, TOKENS)
    assert engine.computed_tokens - computed < len(prompt)
