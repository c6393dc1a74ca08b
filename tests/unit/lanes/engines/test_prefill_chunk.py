from hypothesis import given
from hypothesis import strategies as st

from lanes.engines.prefill_chunk import SIZES, UNMEASURED_TOKENS, PrefillChunk

DECODE_S, TOKEN_S = 0.02, 0.001


def learned(decode_s=DECODE_S, token_s=TOKEN_S, steps=80):
    chunk = PrefillChunk()
    for _ in range(steps):
        chunk.observe(0, decode_s)
        chunk.observe(64, decode_s + 64 * token_s)
    return chunk


def test_before_any_measurement_the_chunk_is_a_cautious_one():
    assert PrefillChunk().choose(10.0) == UNMEASURED_TOKENS


@given(st.floats(0.0, 5.0))
def test_the_chunk_is_the_largest_that_fits_beside_the_decode_step(limit_s):
    chosen = learned().choose(limit_s)
    margin = 1.001  # a mean comes near what it follows, and never quite there
    assert chosen == SIZES[0] or DECODE_S + chosen * TOKEN_S <= limit_s * margin
    larger = next((size for size in SIZES if size > chosen), None)
    assert larger is None or (DECODE_S + larger * TOKEN_S) * margin > limit_s


def test_when_even_the_smallest_does_not_fit_the_smallest_is_taken():
    assert learned(decode_s=1.0).choose(0.05) == SIZES[0]


def test_a_larger_batch_leaves_less_room():
    chunk = learned()
    before = chunk.choose(0.1)
    for _ in range(80):
        chunk.observe(0, 0.08)
    assert chunk.choose(0.1) < before


def test_one_slow_step_does_not_change_everything():
    chunk = learned()
    chunk.observe(64, 1.0)
    assert chunk.choose(0.25) >= 48
