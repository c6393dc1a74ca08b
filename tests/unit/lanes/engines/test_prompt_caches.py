"""What is kept of prompts and answers, what is found of it, and what goes."""

import random

import pytest

from lanes.engines.prompt_caches import LEAST_TOKENS, PromptCaches, PromptMemory

N = LEAST_TOKENS


class Counted:
    """Layers that take a byte for each token."""

    def __init__(self, tokens, *, trimmable=True):
        self.tokens = tokens
        self.size_bytes = tokens
        self.trimmable = trimmable

    def prefix(self, tokens):
        assert tokens == self.tokens or self.trimmable
        assert 0 < tokens <= self.tokens
        return [self, tokens]


def text(*tokens):
    """Each of the given tokens, N times."""
    return tuple(token for token in tokens for _ in range(N))


def keep(caches, token_ids, draft_tokens=0, *, trimmable=True):
    draft = Counted(draft_tokens) if draft_tokens else None
    caches.keep(token_ids, Counted(len(token_ids), trimmable=trimmable), draft)


@pytest.fixture
def memory():
    return PromptMemory(100 * N)


@pytest.fixture
def caches(memory):
    return memory.of("m")


def found(caches, token_ids):
    known = caches.find(token_ids)
    return known.tokens if known is not None else 0


def test_the_longest_common_prefix_is_found_whether_what_is_kept_ends_there_or_goes_on(caches):
    keep(caches, text(1, 2))
    keep(caches, text(1, 3, 4))
    assert found(caches, text(1, 2, 5)) == 2 * N
    assert found(caches, text(1, 3, 5)) == 2 * N
    assert found(caches, text(1, 5)) == N
    assert found(caches, text(5, 1)) == 0
    assert (caches.stats().hits, caches.stats().misses, caches.stats().reused_tokens) == (3, 1, 5 * N)


def test_the_last_token_of_a_prompt_is_always_left_to_compute(caches):
    keep(caches, text(1, 2))
    assert found(caches, text(1, 2)) == 2 * N - 1
    assert found(caches, text(1)) == 0  # what is left of it is not worth it


def test_among_many_the_best_one_is_found():
    chance = random.Random(7)
    caches = PromptMemory(1 << 30).of("m")
    kept = []
    for _ in range(300):
        token_ids = tuple(chance.choices((1, 2), (9, 1), k=chance.randint(N, 6 * N)))
        keep(caches, token_ids)
        kept.append(token_ids)
        query = tuple(chance.choices((1, 2), (9, 1), k=chance.randint(1, 6 * N)))
        best = max(common(query[:-1], other) for other in kept)
        assert found(caches, query) == (best if best >= N else 0)


def common(one, other):
    same = (a == b for a, b in zip(one, other, strict=False))
    return next((i for i, equal in enumerate(same) if not equal), min(len(one), len(other)))


def test_what_cannot_be_trimmed_is_found_only_for_what_begins_with_all_of_it():
    chance = random.Random(8)
    caches = PromptMemory(1 << 30).of("m")
    kept = []
    for _ in range(200):
        length = chance.randint(1, 6)
        token_ids = text(*chance.choices((1, 2, 3), (8, 1, 1), k=length))
        keep(caches, token_ids, trimmable=False)
        kept.append(token_ids)
        query = (*text(*chance.choices((1, 2, 3), (8, 1, 1), k=chance.randint(1, 7))), 9)
        assert found(caches, query) == max((len(one) for one in kept if query[: len(one)] == one), default=0)


def test_a_longer_one_takes_the_place_of_its_beginnings(caches):
    for turns in range(1, 5):
        keep(caches, text(*range(turns)))
    assert not caches.keep(text(0, 1), Counted(2 * N))
    assert (caches.stats().entries, caches.size_bytes) == (1, 4 * N)
    assert caches.stats().evictions == 0
    assert found(caches, text(0, 1, 9)) == 2 * N


def test_the_draft_that_is_furthest_stays_whoever_brings_the_rest(caches):
    keep(caches, text(1), draft_tokens=N - 3)
    keep(caches, text(1, 2, 3))
    assert caches.find((*text(1, 2, 3), 4)).draft_tokens == N - 3
    keep(caches, text(1, 2), draft_tokens=N + 5)
    assert caches.find((*text(1, 2, 3), 4)).draft_tokens == N + 5
    assert caches.find((*text(1), 9)).draft_tokens == N
    assert (caches.stats().entries, caches.size_bytes) == (1, 4 * N + 5)


def test_a_draft_that_cannot_be_trimmed_is_left_out_where_it_would_have_to_be(caches):
    caches.keep(text(1, 2), Counted(2 * N), Counted(2 * N, trimmable=False))
    assert caches.find((*text(1, 2), 3)).draft_tokens == 2 * N
    known = caches.find((*text(1), 3))
    assert (known.tokens, known.draft_tokens, known.draft) == (N, 0, [])


def test_within_the_bound_what_was_not_used_for_longest_goes_first_whatever_model_it_is_of(memory):
    memory.max_bytes = 3 * N
    one, other = memory.of("one"), memory.of("other")
    keep(one, text(1))
    keep(other, text(2))
    keep(one, text(3))
    assert found(one, (*text(1), 9)) == N
    keep(one, text(4))
    assert (found(other, (*text(2), 9)), one.stats().entries, other.stats().entries) == (0, 3, 0)
    keep(one, text(5))
    assert found(one, (*text(3), 9)) == 0
    assert {name: stats.evictions for name, stats in memory.stats().items()} == {"one": 1, "other": 1}
    assert memory.size_bytes == 3 * N


def test_what_is_larger_than_the_bound_pushes_nobody_out(memory, caches):
    memory.max_bytes = 2 * N
    assert caches.keep(text(1), Counted(N))
    assert not caches.keep(text(2, 3, 4), Counted(3 * N))
    assert (caches.stats().entries, caches.stats().evictions) == (1, 0)


def test_a_smaller_bound_takes_effect_at_once_and_without_one_nothing_is_kept(memory, caches):
    for token in range(4):
        keep(caches, text(token))
    assert memory.resize(2 * N) == 2 * N
    assert (memory.size_bytes, found(caches, (*text(3), 9)), found(caches, (*text(1), 9))) == (2 * N, N, 0)
    assert memory.resize(0) == 2 * N
    keep(caches, text(5))
    assert (caches.stats().entries, caches.enabled, found(caches, (*text(5), 9))) == (0, False, 0)


def test_cleared_caches_are_empty_and_their_counters_go_on(memory, caches):
    keep(caches, text(1))
    assert found(caches, (*text(1), 9)) == N
    caches.clear()
    assert found(caches, (*text(1), 9)) == 0
    assert found(caches, text(1)) == 0  # too short to count
    stats = memory.stats()["m"]
    assert (stats.entries, stats.size_bytes, stats.hits, stats.misses) == (0, 0, 1, 1)


def test_an_engine_without_prompt_caches_keeps_nothing():
    caches = PromptCaches()
    keep(caches, text(1))
    assert (caches.find((*text(1), 9)), caches.stats().entries, caches.stats().misses) == (None, 0, 0)


def test_what_is_too_short_to_be_worth_it_is_not_kept(caches):
    keep(caches, text(1)[1:])
    assert caches.stats().entries == 0
