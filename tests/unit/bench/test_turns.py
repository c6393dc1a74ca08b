"""What ``bench turns`` asks, and what it makes of the answers."""

import msgspec

from bench.turns import CONVERSATION_CHARS, LANES, Conversation, Turn, bars, said


def conversation(lane, *, second_s=0.1, known=2000, text="x"):
    return Conversation(lane, Turn(1.0, 2000, 0, "answer"), Turn(second_s, 2100, known, text))


def kept_bars(kept, computed=None):
    return [bar.kept for bar in bars(kept, computed or kept)]


def test_a_second_turn_that_is_quick_known_and_the_same_keeps_every_promise():
    assert kept_bars([conversation(lane) for lane in LANES]) == [True] * 5


def test_each_lane_is_judged_by_itself():
    slow, forgotten = conversation("interactive", second_s=0.21), conversation("throughput", known=1800)
    assert kept_bars([slow, forgotten]) == [False, True, True, False, True]


def test_an_answer_that_is_another_without_prompt_caches_breaks_a_promise():
    kept = [conversation(lane) for lane in LANES]
    computed = [kept[0], msgspec.structs.replace(kept[1], second=Turn(0.1, 2100, 2000, "y"))]
    assert kept_bars(kept, computed)[-1] is False


def test_no_two_conversations_begin_alike_and_each_is_long():
    first = [said(lane, number)[0] for lane in LANES for number in range(3)]
    assert len({text[:20] for text in first}) == len(first)
    assert all(CONVERSATION_CHARS <= len(text) < 1.5 * CONVERSATION_CHARS for text in first)
