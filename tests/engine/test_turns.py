"""A conversation's next turn begins behind the turns before it, and is answered as if it had not."""

import mlx.core as mx
import pytest

from lanes.engines.base import SequenceSpec, advance
from lanes.engines.prompt_caches import LEAST_TOKENS, PromptMemory
from lanes.engines.speculative import SpeculativeEngine
from lanes.engines.throughput import ThroughputEngine
from lanes.host.models import load_pair
from lanes.testing import GREEDY, NO_EOS, SAMPLED, Driver
from lanes.wire import ModelSpec
from tests import tiny_pairs

TOKENS = 12
TURNS = 3
DRAFT_TOKENS = 4
LANES = ["interactive", "throughput"]


class Lanes:
    """Both engines of a pair, with prompt caches between them or without."""

    def __init__(self, pair, max_bytes=1 << 30, eos=NO_EOS):
        memory = PromptMemory(max_bytes)
        self.kept = memory.of("m")
        self.interactive = SpeculativeEngine(pair.target, pair.draft, eos, DRAFT_TOKENS, self.kept)
        self.throughput = ThroughputEngine(pair.target, eos, 4, None, self.kept)
        self.cached_tokens = {}

    def answer(self, lane, prompt, sampling=GREEDY, max_tokens=TOKENS, move_after=None):
        engine = getattr(self, lane)
        spec = SequenceSpec("turn", prompt, max_tokens, sampling, DRAFT_TOKENS)
        self.cached_tokens = 0
        engine.add(spec)
        tokens = []
        while engine.has_work():
            for emission in advance(engine):
                assert emission.error is None
                tokens += emission.token_ids
                self.cached_tokens += emission.cached_tokens
            if move_after is not None and len(tokens) >= move_after:
                engine, move_after = self.throughput, None
                engine.adopt(self.interactive.release("turn"))
        return tuple(tokens)


@pytest.fixture
def warm(pair):
    return Lanes(pair)


@pytest.fixture
def cold(pair):
    return Lanes(pair, max_bytes=0)


def said(held_out, turn):
    """What a person says: other tokens at each turn, and enough of them for a prefix worth keeping."""
    return held_out[turn] + held_out[turn + 1]


@pytest.mark.parametrize(
    ("lanes", "sampling"),
    [
        (["interactive"] * TURNS, GREEDY),
        (["throughput"] * TURNS, GREEDY),
        (["interactive", "throughput"] * 2, GREEDY),
        (["throughput", "interactive"] * 2, SAMPLED),
    ],
    ids=["interactive", "throughput", "in turn", "in turn, seeded"],
)
def test_every_turn_is_answered_as_if_it_were_the_first(warm, cold, held_out, lanes, sampling):
    prompt = ()
    for turn, lane in enumerate(lanes):
        before = len(prompt)
        prompt += said(held_out, turn)
        answer = warm.answer(lane, prompt, sampling)
        assert answer == cold.answer(lane, prompt, sampling)
        # All of the turn before but its last token, which the next prompt ends with if nothing comes behind it.
        assert warm.cached_tokens >= before - 1
        assert cold.cached_tokens == 0
        prompt += answer
    assert warm.kept.stats().hits == len(lanes) - 1


def test_a_turn_computes_what_is_new_and_no_more(warm, held_out):
    prompt = said(held_out, 0)
    prompt += warm.answer("interactive", prompt) + said(held_out, 1)
    for lane in LANES:
        engine = getattr(warm, lane)
        before = engine.computed_tokens
        warm.answer(lane, prompt, max_tokens=1)
        assert engine.computed_tokens - before <= len(said(held_out, 1)) + 2
        assert warm.cached_tokens >= len(prompt) - len(said(held_out, 1)) - 1


@pytest.mark.parametrize("after", [1, 7])
def test_an_answer_that_moved_to_the_other_lane_is_what_the_next_turn_begins_behind(warm, cold, held_out, after):
    first = said(held_out, 0)
    answer = warm.answer("interactive", first, move_after=after)
    assert answer == cold.answer("interactive", first)
    second = first + answer + said(held_out, 1)
    for lane in LANES:
        assert warm.answer(lane, second) == cold.answer(lane, second)
        assert warm.cached_tokens >= len(first + answer) - 1


def test_the_drafts_caches_are_kept_with_the_targets_also_through_a_turn_in_the_other_lane(warm, held_out, pair):
    prompt = said(held_out, 0)
    prompt += warm.answer("interactive", prompt)
    in_interactive = len(prompt)
    prompt += said(held_out, 1)
    prompt += warm.answer("throughput", prompt) + said(held_out, 2)
    known = warm.kept.find(prompt)
    assert known.tokens >= len(prompt) - len(said(held_out, 2)) - 1
    assert in_interactive - DRAFT_TOKENS - 2 <= known.draft_tokens <= in_interactive
    assert [layer.offset for layer in known.draft] == [known.draft_tokens] * len(pair.draft.layers)
    assert [layer.offset for layer in known.target] == [known.tokens] * len(pair.target.layers)


@pytest.mark.parametrize("lane", LANES)
def test_sequences_that_go_on_differently_from_one_beginning_at_once_do_not_disturb_each_other(
    warm, cold, held_out, lane
):
    beginning = said(held_out, 0)
    beginning += warm.answer("interactive", beginning)
    prompts = [beginning + held_out[i] for i in range(2, 5)]
    expected = [cold.answer(lane, prompt) for prompt in prompts]
    driver = Driver(getattr(warm, lane))
    answers = [driver.add(SequenceSpec(str(i), prompt, TOKENS, GREEDY, 4)) for i, prompt in enumerate(prompts)]
    driver.finish()
    assert [tuple(answer.token_ids) for answer in answers] == expected
    # ... nor what they began with.
    assert [warm.answer(lane, prompt) for prompt in prompts] == expected
    assert warm.kept.stats().misses == 1


def test_prompts_that_wait_together_compute_their_common_beginning_once(warm, cold, held_out):
    beginning = said(held_out, 0) + said(held_out, 2)
    prompts = [beginning + held_out[i] for i in range(4)]
    expected = [cold.answer("throughput", prompt) for prompt in prompts]
    driver = Driver(warm.throughput)
    answers = [driver.add(SequenceSpec(str(i), prompt, TOKENS, GREEDY)) for i, prompt in enumerate(prompts)]
    driver.finish()
    assert [tuple(answer.token_ids) for answer in answers] == expected
    computed = len(beginning) + sum(map(len, prompts)) - len(prompts) * len(beginning) + len(prompts) * TOKENS
    assert warm.throughput.computed_tokens <= computed


@pytest.mark.parametrize("lane", LANES)
def test_the_same_prompt_again_computes_its_last_token_only(warm, cold, held_out, lane):
    prompt = said(held_out, 0)
    expected = cold.answer(lane, prompt)
    assert [warm.answer(lane, prompt) for _ in range(3)] == [expected] * 3
    assert warm.cached_tokens == len(prompt) - 1


@pytest.mark.parametrize("lane", LANES)
def test_whoever_asks_again_after_giving_up_begins_where_it_gave_up(warm, cold, held_out, lane):
    prompt = said(held_out, 0)
    engine = getattr(warm, lane)
    engine.add(SequenceSpec("gone", prompt, TOKENS, GREEDY, DRAFT_TOKENS))
    tokens = []
    while len(tokens) < 6:
        tokens += [token for emission in advance(engine) for token in emission.token_ids]
    engine.cancel("gone")
    assert warm.kept.find((*prompt, *tokens, 1)).tokens >= len(prompt) + 5
    while engine.has_work():
        advance(engine)
    assert warm.answer(lane, prompt) == cold.answer(lane, prompt)
    assert warm.cached_tokens == len(prompt) - 1


def test_an_answer_that_goes_on_behind_emitted_tokens_counts_only_what_it_knew_of_the_prompt(warm, cold, held_out):
    prompt = said(held_out, 0)
    whole = warm.answer("interactive", prompt)
    driver = Driver(warm.interactive)
    rest = driver.add(SequenceSpec("rest", prompt, TOKENS, GREEDY, DRAFT_TOKENS, emitted=whole[:5]))
    cached = 0
    while not rest.ended:
        for emission in advance(driver.engine):
            rest.take(emission)
            cached += emission.cached_tokens
    assert tuple(rest.token_ids) == whole[5:] == cold.answer("interactive", prompt)[5:]
    assert cached == len(prompt)


def test_a_failed_step_leaves_nothing_behind(warm, cold, held_out, monkeypatch):
    prompt = said(held_out, 0)
    warm.answer("interactive", prompt)
    warm.interactive.add(SequenceSpec("fails", prompt + held_out[2], TOKENS, GREEDY))
    with monkeypatch.context() as planted:
        planted.setattr(mx, "async_eval", _fail)
        (emission,) = advance(warm.interactive)
    assert "planted" in emission.error
    assert (warm.kept.stats().entries, warm.kept.size_bytes) == (0, 0)
    assert warm.answer("interactive", prompt) == cold.answer("interactive", prompt)


def _fail(*_):
    raise RuntimeError("planted")


@pytest.mark.parametrize("lane", LANES)
def test_closed_engines_give_the_memory_back(pair, held_out, lane):
    lanes = Lanes(pair)
    lanes.answer(lane, said(held_out, 0))
    before = mx.get_active_memory()
    kept = lanes.kept.size_bytes
    assert kept > 0
    getattr(lanes, lane).close()
    assert lanes.kept.size_bytes == 0
    mx.synchronize()  # a step that is under way holds on to what it reads
    assert mx.get_active_memory() <= before - kept


@pytest.mark.parametrize("family", ["mamba", "gemma3_text"])
def test_caches_that_cannot_be_trimmed_serve_what_begins_with_all_of_them(tmp_path, held_out, family):
    directory = str(tiny_pairs.make(tmp_path / family, family))
    pair = load_pair(ModelSpec("tiny", directory))
    warm, cold = Lanes(pair), Lanes(pair, max_bytes=0)
    prompt = said(held_out, 0)
    for turn, lane in enumerate(LANES * 2, start=1):
        answer = warm.answer(lane, prompt)
        assert answer == cold.answer(lane, prompt)
        prompt += answer + said(held_out, turn)
    assert warm.cached_tokens > len(prompt) // 2
    fork = prompt[: 2 * LEAST_TOKENS] + held_out[5]
    assert warm.answer("throughput", fork) == cold.answer("throughput", fork)
