"""A sequence that starts in one engine and goes on in another gives the answer that it would have given at home."""

import pytest

from lanes.engines.base import SequenceSpec, advance
from lanes.engines.speculative import SpeculativeEngine
from lanes.engines.throughput import ThroughputEngine
from lanes.testing import GREEDY, NO_EOS, SAMPLED, Driver
from lanes.wire import Sampling

TOKENS = 48
PENALISED = Sampling(temperature=0.7, seed=5, repetition_penalty=1.1, presence_penalty=0.3, frequency_penalty=0.2)


def tokens_of(engine, spec, stop_after=None):
    """The tokens of ``spec`` in ``engine``; with ``stop_after``, only until so many are there."""
    tokens = []
    while engine.has_work() and (stop_after is None or len(tokens) < stop_after):
        for emission in advance(engine):
            assert emission.error is None
            if emission.request_id == spec.request_id:
                tokens += emission.token_ids
    return tokens


def engines(pair):
    return SpeculativeEngine(pair.target, pair.draft, NO_EOS, 4), ThroughputEngine(pair.target, NO_EOS, 4)


@pytest.mark.parametrize("after", [1, 17, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 40))])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "seeded", "penalised"])
def test_a_sequence_that_moves_gives_the_same_answer(pair, held_out, sampling, after):
    spec = SequenceSpec("moves", held_out[0], TOKENS, sampling, 4)
    interactive, throughput = engines(pair)
    interactive.add(spec)
    expected = tokens_of(interactive, spec)
    interactive.add(spec)
    begun = tokens_of(interactive, spec, stop_after=after)
    handover = interactive.release(spec.request_id)
    assert handover.token_ids == (*spec.prompt, *begun)
    assert interactive.active() == 0
    throughput.adopt(handover)
    assert begun + tokens_of(throughput, spec) == expected


def test_a_sequence_that_moves_prefills_nothing_again(pair, held_out):
    spec = SequenceSpec("moves", held_out[0], TOKENS, GREEDY, 4)
    interactive, throughput = engines(pair)
    interactive.add(spec)
    begun = tokens_of(interactive, spec, stop_after=8)
    throughput.adopt(interactive.release(spec.request_id))
    tokens_of(throughput, spec)
    assert throughput.computed_tokens == TOKENS - len(begun)


def test_a_sequence_may_move_into_a_running_batch(pair, held_out):
    interactive, throughput = engines(pair)
    driver = Driver(throughput)
    alone = [driver.add(SequenceSpec(str(i), held_out[i], TOKENS, SAMPLED)) for i in (1, 2)]
    driver.finish()
    spec = SequenceSpec("moves", held_out[0], TOKENS, SAMPLED, 4)
    interactive.add(spec)
    expected = tokens_of(interactive, spec)
    interactive.add(spec)
    begun = tokens_of(interactive, spec, stop_after=9)
    others = [SequenceSpec(f"beside {i}", held_out[i], TOKENS, SAMPLED) for i in (1, 2)]
    for other in others:
        throughput.add(other)
    found = {other.request_id: [] for other in others}
    found["moves"] = begun

    def step():
        for emission in advance(throughput):
            found[emission.request_id] += emission.token_ids

    for _ in range(6):
        step()
    throughput.adopt(interactive.release("moves"))
    while throughput.has_work():
        step()
    assert found["moves"] == expected
    assert [found[other.request_id] for other in others] == [list(answer.token_ids) for answer in alone]


def test_a_sequence_without_a_token_stays_where_it_is(pair, held_out):
    interactive, _ = engines(pair)
    interactive.add(SequenceSpec("young", held_out[0], 8, GREEDY, 4))
    assert interactive.release("young") is None
    assert interactive.release("nobody") is None
    assert interactive.active() == 1
