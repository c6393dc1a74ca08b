"""A batch's steps are as short as they may be, and what that takes changes no answer."""

import pytest

from lanes.engines import throughput
from lanes.engines.base import SequenceSpec
from lanes.engines.batch_cache import BatchCache
from lanes.engines.throughput import ThroughputEngine
from lanes.testing import GREEDY, NO_EOS, Driver
from lanes.wire import Sampling

LENGTHS = (4, 16, 16)


def answers(pair, prompts, limit_s):
    """The answers, and how many steps in a row brought no token of those that go on after the first had left."""
    driver = Driver(ThroughputEngine(pair.target, NO_EOS, 4))
    found = [
        driver.add(SequenceSpec(str(number), prompts[number], tokens, GREEDY)) for number, tokens in enumerate(LENGTHS)
    ]
    driver.until(lambda: found[0].ended)
    given, steps = len(found[1].token_ids), 0
    while len(found[1].token_ids) == given:
        driver.step(limit_s)
        steps += 1
    driver.finish(limit_s)
    return [answer.token_ids for answer in found], steps - 1


@pytest.fixture(scope="module")
def undisturbed(pair, held_out):
    return answers(pair, held_out, None)


@pytest.mark.parametrize(("limit_s", "returns_s", "batches"), [(None, 60.0, 1), (0.05, 60.0, 2), (0.05, 0.0, 1)])
def test_batches_are_kept_small_for_whoever_was_there_lately(pair, held_out, monkeypatch, limit_s, returns_s, batches):
    monkeypatch.setattr(throughput, "RETURNS_S", returns_s)
    engine = ThroughputEngine(pair.target, NO_EOS, 4, 0.05)
    for tokens in range(10, 200, 10):
        engine._costs.decoded(tokens, 0.001 * tokens)  # both together are half as long again as the bound
    driver = Driver(engine)
    driver.step(limit_s)
    found = [driver.add(SequenceSpec(str(number), held_out[number], 8, GREEDY)) for number in range(2)]
    while not all(answer.token_ids for answer in found):
        driver.step()
    assert len(engine._batches) == batches


SAMPLED = Sampling(temperature=0.8, seed=11, repetition_penalty=1.1)


def test_a_batch_that_is_too_large_for_whoever_comes_is_cut_and_every_answer_goes_on(pair, held_out):
    sampling = (GREEDY, SAMPLED) * 2
    specs = [SequenceSpec(str(number), held_out[number], 24, how) for number, how in enumerate(sampling)]
    undisturbed = Driver(ThroughputEngine(pair.target, NO_EOS, 4))
    expected = [undisturbed.add(spec) for spec in specs]
    undisturbed.finish()

    engine = ThroughputEngine(pair.target, NO_EOS, 4)
    driver = Driver(engine)
    found = [driver.add(spec) for spec in specs]
    while not all(len(answer.token_ids) > 4 for answer in found):
        driver.step()
    assert [len(batch) for batch in engine._batches] == [4]
    longest = engine._batches[0].longest
    for _ in range(100):
        for sequences in (1, 2, 3, 4):
            engine._costs.decoded(sequences * longest, 0.01 * sequences)
    given = [len(answer.token_ids) for answer in found]
    for _ in range(2):
        driver.step(0.026)  # two sequences' step is made for eight tenths of it
    assert [len(batch) for batch in engine._batches] == [2, 2]
    assert [len(answer.token_ids) for answer in found] == given  # no step of all of them in between
    driver.finish(0.026)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def test_those_who_leave_together_leave_each_layer_once(pair, held_out, monkeypatch):
    engine = ThroughputEngine(pair.target, NO_EOS, 4)
    driver = Driver(engine)
    found = [driver.add(SequenceSpec(str(number), held_out[number], 24, GREEDY)) for number in range(4)]
    while not all(answer.token_ids for answer in found):
        driver.step()
    kept = []
    original = BatchCache.filter
    monkeypatch.setattr(BatchCache, "filter", lambda self, rows: (kept.append(len(rows)), original(self, rows)))
    for number in (0, 2, 3):
        driver.cancel(found[number])
    driver.step()
    assert kept == [1] * len(pair.target.layers)


def test_a_batch_of_one_is_not_cut_however_long_its_step_takes_and_that_is_said_once(pair, held_out, caplog):
    engine = ThroughputEngine(pair.target, NO_EOS, 4, 1e-6)
    driver = Driver(engine)
    found = driver.add(SequenceSpec("one", held_out[0], 12, GREEDY))
    driver.finish(1e-6)
    assert len(found.token_ids) == 12
    assert len(engine._batches) == 1
    assert caplog.text.count("max_step_ms of 0 cannot be kept: a step of one sequence of") == 1


def test_while_nobody_waits_the_whole_cache_is_copied_in_one_step(undisturbed):
    assert undisturbed[1] == 1


def test_while_somebody_waits_a_step_copies_no_more_than_fits(pair, held_out, undisturbed):
    tokens, copying = answers(pair, held_out, 1e-9)
    assert copying == len(pair.target.layers)
    assert tokens == undisturbed[0]


def test_and_all_of_it_if_that_fits(pair, held_out, undisturbed):
    assert answers(pair, held_out, 60.0) == undisturbed


def test_a_prompt_of_one_token_joins_with_nothing_computed(pair):
    alone, beside = ThroughputEngine(pair.target, NO_EOS, 4), ThroughputEngine(pair.target, NO_EOS, 4)
    driver, other = Driver(alone), Driver(beside)
    found = driver.add(SequenceSpec("one", (262,), 6, GREEDY))
    driver.finish()
    assert len(found.token_ids) == 6
    again = [other.add(SequenceSpec(str(number), (262,), 6, GREEDY)) for number in range(2)]
    other.finish(1e-6)
    assert [answer.token_ids for answer in again] == [found.token_ids] * 2
