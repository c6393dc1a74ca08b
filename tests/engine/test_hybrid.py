"""A batch's step and a chunk of a prompt in one pass are what they are one by one."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from lanes.engines import hybrid, step_costs
from lanes.engines.base import SequenceSpec
from lanes.engines.batch_cache import BatchCache
from lanes.engines.hybrid import Chunk
from lanes.engines.prompt_caches import PromptMemory
from lanes.engines.throughput import ThroughputEngine
from lanes.testing import GREEDY, NO_EOS, SAMPLED, Driver

SOMEBODY_WAITS_S = 0.05
TOLERANCE = 1e-4


class Watched:
    """A model that tells how many rows, and tokens of each, it was given."""

    def __init__(self, model, fails_with=None):
        self._model = model
        self._fails_with = fails_with
        self.shapes = []

    def __call__(self, inputs, *args, **kwargs):
        self.shapes.append(inputs.shape)
        found = self._model(inputs, *args, **kwargs)
        if self._fails_with is not None and mx.any(inputs == self._fails_with).item():
            raise RuntimeError("planted failure")  # when every layer has written its keys
        return found

    def __getattr__(self, name):
        return getattr(self._model, name)


class Windowed(Watched):
    """A model that asks for another mask than it is given beside a chunk."""

    def __call__(self, inputs, *args, cache, **kwargs):
        cache[0].make_mask(inputs.shape[1], return_array=True, window_size=4)
        return super().__call__(inputs, *args, cache=cache, **kwargs)


class Unlike(Watched):
    """A model that computes something else where a chunk is among the rows."""

    def __call__(self, inputs, *args, **kwargs):
        found = super().__call__(inputs, *args, **kwargs)
        return 1.1 * found if inputs.shape[0] > len(hybrid.TRIED_ON) else found


@pytest.fixture(autouse=True)
def _every_step_carries_a_chunk(monkeypatch):
    monkeypatch.setattr(step_costs.StepCosts, "carried_tokens", lambda *_: 7)


def caches(pair, prompts):
    """The caches of a batch of all prompts but the last, and that one's."""
    found = [make_prompt_cache(pair.target) for _ in prompts]
    for cache, prompt in zip(found, prompts, strict=True):
        pair.target(mx.array(prompt)[None], cache=cache)
    *rows, single = found
    return [BatchCache.merge(layers) for layers in zip(*rows, strict=True)], single


def near(one, other):
    return mx.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE).item()


def test_logits_and_caches_are_those_of_two_passes(pair, held_out):
    prompts = [held_out[0][:9], held_out[1][:17], held_out[2][:5], held_out[3][:11]]
    inputs, token_ids = mx.array([3, 4, 5]), held_out[4][:13]
    batch, single = caches(pair, prompts)
    expected = hybrid.decode(pair.target, inputs, batch, None)
    pair.target(mx.array(token_ids)[None], cache=single)
    carrying, carried = caches(pair, prompts)
    chunk = Chunk(token_ids, carried)
    found = hybrid.decode(pair.target, inputs, carrying, chunk)
    assert chunk.computed
    assert found.shape == (3, pair.target.args.vocab_size)
    assert near(found, expected)
    for layer, alone in zip((*carrying, *carried), (*batch, *single), strict=True):
        assert near(mx.array(layer.offset), mx.array(alone.offset))
        for keys, keys_alone in zip(layer.state[:2], alone.state[:2], strict=True):
            assert near(keys, keys_alone)


def test_a_chunk_that_fails_changes_nothing(pair, held_out):
    prompts = [held_out[0][:9], held_out[1][:17], held_out[2][:5]]
    marker = 4095
    model = Watched(pair.target, fails_with=marker)
    batch, _ = caches(pair, prompts)
    expected = hybrid.decode(pair.target, mx.array([3, 4]), batch, None)
    carrying, carried = caches(pair, prompts)
    chunk = Chunk((5, marker), carried)
    assert near(hybrid.decode(model, mx.array([3, 4]), carrying, chunk), expected)
    assert str(chunk.error) == "planted failure"
    assert not chunk.computed
    assert [layer.offset for layer in carried] == [5] * len(carried)
    assert near(carrying[0].offset, batch[0].offset)


def test_whether_a_model_can_is_found_out(pair):
    assert hybrid.works(pair.target)
    assert not hybrid.works(Windowed(pair.target))
    assert not hybrid.works(Unlike(pair.target))
    assert not hybrid.works(Watched(pair.target, fails_with=hybrid.TRIED_CHUNK[0])), "it fails without a batch, too"


def answers(pair, prompts, sampling, limit_s, target=None, prompt_caches=None):
    """Of one that decodes while the others come."""
    driver = Driver(ThroughputEngine(target or pair.target, NO_EOS, 4, prompt_caches=prompt_caches))
    first = driver.add(SequenceSpec("0", prompts[0], 40, sampling))
    driver.until(lambda: len(first.token_ids) > 3, limit_s)
    others = [
        driver.add(SequenceSpec(str(number), prompt, 12, sampling))
        for number, prompt in enumerate(prompts[1:], start=1)
    ]
    driver.finish(limit_s)
    return [first, *others]


def carried(watched):
    """Passes of more rows of one token than the batch, or a trial, has."""
    return [rows for rows, tokens in watched.shapes if tokens == 1 and rows > 5]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_the_same_with_and_without(pair, held_out, sampling):
    prompts = [held_out[0], held_out[1] + held_out[2], held_out[3][:1], held_out[4]]
    watched = Watched(pair.target)
    expected = [answer.token_ids for answer in answers(pair, prompts, sampling, None)]
    found = answers(pair, prompts, sampling, SOMEBODY_WAITS_S, watched)
    assert [answer.token_ids for answer in found] == expected
    assert carried(watched), "a chunk and a batch were never computed together"


def test_while_nobody_waits_prompts_are_computed_by_themselves(pair, held_out):
    watched = Watched(pair.target)
    answers(pair, held_out[:3], GREEDY, None, watched)
    assert not carried(watched)


def test_a_prompt_that_fails_beside_others_fails_alone(pair, held_out):
    marker = 4095
    prompts = [held_out[0], (*held_out[1], marker, 1), held_out[2]]
    expected = answers(pair, [held_out[0], held_out[2]], GREEDY, None)
    first, failed, last = answers(pair, prompts, GREEDY, SOMEBODY_WAITS_S, Watched(pair.target, fails_with=marker))
    assert failed.error is not None
    assert "planted failure" in failed.error
    assert [first.token_ids, last.token_ids] == [answer.token_ids for answer in expected]


def test_what_a_prompt_cache_knows_is_not_computed_beside_others_either(pair, held_out):
    prompt = held_out[1] + held_out[2] + held_out[3]
    memory = PromptMemory(1 << 30)
    known = memory.of("target")
    (expected,) = answers(pair, [prompt], GREEDY, None, prompt_caches=known)
    watched = Watched(pair.target)
    _, found = answers(pair, [held_out[0], prompt], GREEDY, SOMEBODY_WAITS_S, watched, known)
    assert found.token_ids == expected.token_ids[:12]
    assert not carried(watched)
