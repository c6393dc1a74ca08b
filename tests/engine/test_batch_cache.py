"""The batch's cache holds what mlx-lm's own does, whoever joins and leaves."""

import random

import mlx.core as mx
import pytest
from mlx_lm.models.cache import BatchKVCache, KVCache

from lanes.engines.batch_cache import BatchCache, joining

HEADS, DIMENSION = 2, 4


def rows_of(cache):
    """Keys, values and offset of each row, without its padding."""
    keys, values, offset, left_padding = cache.state
    return [
        (keys[row, :, padding:].tolist(), values[row, :, padding:].tolist(), offset[row].item())
        for row, padding in enumerate(left_padding.tolist())
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


def batch_of(lengths, rng):
    """A batch of sequences of these lengths."""
    caches = [KVCache() for _ in lengths]
    for cache, tokens in zip(caches, lengths, strict=True):
        fed(cache, 1, tokens, rng)
    return joined(caches)[1]


def grown_by(act):
    """Bytes that were in use at the same time, beyond those before."""
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    act()
    mx.synchronize()
    return mx.get_peak_memory() - before


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
                keep = rng.sample(range(len(ours.paddings)), rng.randint(1, len(ours.paddings) - 1))
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


def test_a_sequence_that_joins_or_leaves_costs_a_row_and_not_a_copy_of_all():
    rng = random.Random(3)
    one, batch = (batch_of(lengths, rng) for lengths in ([40], [200, 100, 150, 200]))
    mx.eval(one.state, batch.state)
    batch.filter([0, 3, 2])
    mx.eval(batch.moving)  # a copy of one row
    assert grown_by(lambda: mx.eval(batch.state)) < batch.nbytes / 8
    assert grown_by(lambda: (batch.extend(one), mx.eval(batch.state))) < batch.nbytes / 8
    assert batch.keys.shape[0] == 4


def test_one_that_is_longer_than_the_room_in_front_of_the_others_moves_them():
    rng = random.Random(4)
    short, long = batch_of([3, 2], rng), batch_of([500], rng)
    before = rows_of(short)
    short.extend(long)
    assert short.paddings == [497, 498, 0]
    assert rows_of(short) == [*before, *rows_of(long)]
    short.filter([0, 1])  # and where there is room now, another one costs nothing
    assert short.paddings == [0, 1]
    room = short.keys.shape
    short.extend(batch_of([400], rng))
    assert short.paddings == [397, 398, 0]
    assert short.keys.shape == room


def test_room_is_made_before_a_step_needs_it():
    rng = random.Random(8)
    batch = batch_of([250, 100], rng)
    while not batch.make_room(0, 0):
        before = batch.keys.shape
        fed(batch, 2, 1, rng)
        assert batch.keys.shape == before
    rows = rows_of(batch)
    for lengths in ([40], [600], [20, 900]):
        batch.make_room(len(lengths), max(lengths))
        room = batch.keys.shape
        others = batch_of(lengths, rng)
        rows += rows_of(others)
        batch.extend(others)
        assert rows_of(batch) == rows
        assert not batch.make_room(0, 0)
        assert batch.keys.shape == room


def test_where_all_may_be_seen_there_is_no_mask():
    batch = batch_of([5, 5], random.Random(6))
    assert batch.make_mask(1) is None
    assert batch.make_mask(1, return_array=True).tolist() == [[[[True] * 6]]] * 2
    batch.extend(batch_of([4], random.Random(7)))
    assert batch.make_mask(1).tolist() == [[[[True] * 6]], [[[True] * 6]], [[[False, *[True] * 5]]]]


def test_many_that_leave_give_their_memory_back():
    rng = random.Random(5)
    batch = batch_of([50] * 8, rng)
    fed(batch, 8, 1, rng)
    size, last = batch.nbytes, rows_of(batch)[6:]
    batch.filter([6, 7])
    assert batch.nbytes == size / 4
    assert rows_of(batch) == last


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
