"""Every engine passes the conformance suite."""

import gc

import mlx.core as mx
import pytest

from lanes.engines.base import SequenceSpec, advance
from lanes.engines.scripted import ScriptedEngine
from lanes.engines.speculative import SpeculativeEngine
from lanes.engines.throughput import ThroughputEngine
from lanes.testing import CHECKS, GREEDY, NO_EOS, SAMPLED, Driver, EngineSuite, check_engine

MAX_DRAFT_TOKENS = 4
MAX_ACTIVE = 3  # fewer than some checks run at once: the rest must wait, and answer the same
MARKER = 4095
"""A token id that makes a planted model fail; of the vocabulary, and in no prompt here."""


class FailingAt:
    """A model that works until it is given the marker."""

    def __init__(self, model):
        self._model = model

    def __call__(self, inputs, *args, **kwargs):
        if mx.any(inputs == MARKER).item():
            raise RuntimeError("planted failure")
        return self._model(inputs, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._model, name)


def speculative(pair):
    return lambda eos: SpeculativeEngine(FailingAt(pair.target), pair.draft, eos, MAX_DRAFT_TOKENS)


def plain(pair):
    return lambda eos: SpeculativeEngine(FailingAt(pair.target), None, eos, MAX_DRAFT_TOKENS)


def both(pair):
    return lambda eos: SpeculativeEngine(FailingAt(pair.target), pair.draft, eos, MAX_DRAFT_TOKENS, prompt_lookup=True)


def throughput(pair):
    return lambda eos: ThroughputEngine(FailingAt(pair.target), eos, MAX_ACTIVE)


REAL = [speculative, both, plain, throughput]
CONTAINED = {speculative, plain}
"""What these do, the engine that has both proposers does, too."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(make, marks=pytest.mark.slow if make in CONTAINED else ()) for make in REAL],
    ids=lambda make: make.__name__,
)
def suite(request, pair, held_out):
    poison = (*held_out[3][:4], MARKER)
    batches = request.param is throughput
    barren_steps = 1 + len(pair.target.layers) if batches else 1
    return EngineSuite(request.param(pair), held_out[:4], poison=poison, shares_fate=batches, barren_steps=barren_steps)


@pytest.mark.parametrize("check", CHECKS)
def test_an_engine_of_the_embedded_pair_keeps_the_contract(suite, check):
    getattr(suite, check)()


@pytest.mark.parametrize("tokens_per_step", [1, 3])
def test_the_scripted_engine_keeps_the_contract(tokens_per_step):
    prompts = [tuple(range(5, 25)), (9, 8, 7, 6), (11, 12, 13)]
    check_engine(lambda eos: ScriptedEngine(tokens_per_step, eos=eos), prompts)


def test_the_speculative_engine_really_drafts_and_some_of_it_is_accepted(pair, held_out):
    driver = Driver(speculative(pair)(NO_EOS))
    answers = [driver.add(SequenceSpec(str(i), held_out[i], 32, GREEDY, MAX_DRAFT_TOKENS)) for i in range(3)]
    driver.finish()
    for answer in answers:
        assert answer.counters.rounds > 0
        assert answer.counters.accepted > 0


@pytest.mark.parametrize("make", REAL, ids=lambda make: make.__name__)
def test_different_seeds_give_different_answers(pair, held_out, make):
    driver = Driver(make(pair)(NO_EOS))
    settings = [SAMPLED, type(SAMPLED)(temperature=0.8, top_p=0.95, seed=12)]
    one, other = (driver.add(SequenceSpec(str(s.seed), held_out[0], 16, s)) for s in settings)
    driver.finish()
    assert one.token_ids != other.token_ids


@pytest.mark.parametrize("make", REAL, ids=lambda make: make.__name__)
def test_close_gives_the_sequences_memory_back(pair, held_out, make):
    engine = make(pair)(NO_EOS)
    in_use = []
    for _ in range(3):
        for i in range(3):
            engine.add(SequenceSpec(str(i), held_out[i], 64, GREEDY, MAX_DRAFT_TOKENS))
        for _ in range(9):
            advance(engine)
        running = mx.get_active_memory()
        engine.close()
        gc.collect()
        in_use.append(mx.get_active_memory())
        assert in_use[-1] < running
    assert in_use[-1] <= in_use[0]
