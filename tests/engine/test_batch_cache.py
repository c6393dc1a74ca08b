"""The batch's cache holds what mlx-lm's own does, whoever joins and leaves."""

import random

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache

from lanes.engines.batch_cache import BatchCache, joining

HEADS, DIMENSION = 2, 4


def rows_of(cache):
    """Keys, values and offset of each row, without its padding."""
    paddings = cache.left_padding.tolist()
    return [
        (
            cache.keys[row, :, padding : cache.size()].tolist(),
            cache.values[row, :, padding : cache.size()].tolist(),
            cache.offset[row].item(),
        )
        for row, padding in enumerate(paddings)
    ]


def fed(cache, rows, tokens, rng):
    shape = (rows, HEADS, tokens, DIMENSION)
    keys, values = (
        mx.array([rng.random() for _ in range(rows * HEADS * tokens * DIMENSION)]).reshape(shape) for _ in "kv"
    )
    cache.update_and_fetch(keys, values)


def sequence(rng):
    cache = KVCache()
    tokens = rng.choice((0, 1, 3, 40, 255, 256, 300))
    if tokens:
        fed(cache, 1, tokens, rng)
    return cache


def joined(sequences):
    """The same sequences, merged by mlx-lm's class and by ours."""
    (layers,) = zip(*(joining([cache]) for cache in sequences), strict=True)
    return BatchKVCache.merge(sequences), layers[0].merge(list(layers))


@pytest.mark.parametrize("seed", range(20))
def test_it_holds_what_mlx_lm_s_holds(seed):
    rng = random.Random(seed)
    theirs, ours = joined([sequence(rng) for _ in range(rng.randint(1, 4))])
    assert isinstance(ours, BatchCache)
    for _ in range(12):
        match rng.choice(("step", "join", "leave", "extract")):
            case "step":
                rows = len(ours.paddings)
                start = rng.random()
                for cache in (theirs, ours):
                    fed(cache, rows, 1, random.Random(start))
            case "join":
                more = [sequence(rng) for _ in range(rng.randint(1, 2))]
                for cache, other in zip((theirs, ours), joined(more), strict=True):
                    cache.extend(other)
            case "leave" if len(ours.paddings) > 1:
                keep = sorted(rng.sample(range(len(ours.paddings)), rng.randint(1, len(ours.paddings) - 1)))
                for cache in (theirs, ours):
                    cache.filter(keep)
            case "extract" if ours.keys is not None:
                row = rng.randrange(len(ours.paddings))
                left, right = (cache.extract(row) for cache in (theirs, ours))
                assert left.offset == right.offset
                assert mx.array_equal(left.keys[..., : left.offset, :], right.keys[..., : right.offset, :])
                assert mx.array_equal(left.values[..., : left.offset, :], right.values[..., : right.offset, :])
        assert ours.paddings == ours.left_padding.tolist() == theirs.left_padding.tolist()
        assert ours.size() == theirs.size()
        if ours.keys is not None:
            assert rows_of(ours) == rows_of(theirs)


def test_prompts_padded_on_the_right_are_padded_on_the_left_in_the_end():
    theirs, ours = joined([KVCache(), KVCache(), KVCache()])
    for cache in (theirs, ours):
        cache.prepare(lengths=[5, 2, 4], right_padding=[0, 3, 1])
        fed(cache, 3, 5, random.Random(2))
        cache.finalize()
        cache.filter([1, 2])
    assert ours.paddings == ours.left_padding.tolist() == theirs.left_padding.tolist() == [2, 0]
    assert rows_of(ours) == rows_of(theirs)


def test_caches_of_other_kinds_are_left_as_they_are():
    class Other(KVCache):
        pass

    layer = Other()
    assert joining([layer]) == [layer]
