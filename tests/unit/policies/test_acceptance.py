"""When a pair stops speculating, and when it starts again."""

from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.acceptance import (
    MAX_DOUBLINGS,
    TRANSITIONS,
    AcceptanceGate,
    GateEvent,
    GateRules,
    GateState,
    IllegalGateEvent,
    after,
    gate_rules,
)
from policies.load import load

RULES = GateRules(min_acceptance=0.4, window_tokens=40, retry_margin=0.1, retry_after_s=60)


class Pair:
    """A gate, a clock, and a draft of which so many of ten tokens are accepted."""

    def __init__(self, rules=RULES):
        self.now_s = 1000.0
        self.gate = AcceptanceGate(rules)

    def answers(self, *accepted_of_ten):
        """One answer after the other, of ten compared tokens each; which of them speculated."""
        return [self.answer(accepted) for accepted in accepted_of_ten]

    def answer(self, accepted, rejected=None):
        granted = self.gate.begin(self.now_s)
        if granted is None:
            return False
        self.gate.end(granted, accepted, 10 - accepted if rejected is None else rejected, self.now_s)
        return True

    def state(self):
        return self.view().state

    def view(self):
        return self.gate.view(self.now_s)


def turned_off(rules=RULES):
    pair = Pair(rules)
    pair.answers(0, 0, 0, 0)
    assert pair.state() is GateState.OFF
    return pair


def retrying():
    pair = turned_off()
    pair.now_s += 60
    return pair


# the table


def test_every_state_is_reached_and_left_and_nothing_else_is_in_the_table():
    assert TRANSITIONS.keys() == set(GateState)
    reached = {state for row in TRANSITIONS.values() for state in row.values()}
    assert reached == set(GateState)


@pytest.mark.parametrize(("state", "event"), list(product(GateState, GateEvent)))
def test_an_event_that_the_table_does_not_have_raises(state, event):
    if event in TRANSITIONS[state]:
        assert after(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalGateEvent, match=f"speculation is {state}: {event} cannot happen; possible: "):
            after(state, event)


# off


def test_a_bad_draft_is_off_as_soon_as_the_window_is_full_and_not_before():
    pair = Pair()
    assert pair.answers(0, 0, 0, 0, 0) == [True, True, True, True, False]
    seen = pair.view()
    assert (seen.state, seen.acceptance_ratio, seen.compared_tokens) == (GateState.OFF, 0, 40)
    assert (seen.retry_in_s, seen.switched_off) == (60, 1)
    assert pair.gate.closed


def test_the_ratio_is_that_of_all_tokens_of_the_window_and_the_bound_itself_is_enough():
    pair = Pair()
    pair.answers(8, 0, 8, 0)
    assert (pair.state(), pair.view().acceptance_ratio) == (GateState.ON, 0.4)
    pair = Pair()
    pair.answers(8, 0, 7, 0)
    assert pair.state() is GateState.OFF


def test_old_answers_slide_out_of_the_window():
    pair = Pair()
    pair.answers(*[10] * 100)
    assert pair.view().compared_tokens == 40
    assert pair.answers(0, 0, 0, 0) == [True, True, True, False], "ten of forty are too few"


def test_one_long_answer_is_a_whole_window_and_short_ones_are_kept_until_they_are_not_needed():
    pair = Pair()
    pair.answer(0, 500)
    assert pair.state() is GateState.OFF
    pair = Pair()
    pair.answer(30, 9)
    pair.answer(1, 0)
    assert pair.view().compared_tokens == 40
    pair.answer(1, 0)
    assert pair.view().compared_tokens == 41, "without the long one there would not be enough"


def test_answers_in_which_nothing_was_compared_say_nothing():
    pair = Pair()
    for _ in range(1000):
        assert pair.answer(0, 0)
    assert (pair.state(), pair.view().acceptance_ratio) == (GateState.ON, None)


def test_requests_that_began_before_it_was_switched_off_do_not_count_for_the_retry():
    pair = Pair()
    late = pair.gate.begin(pair.now_s)
    pair.answers(0, 0, 0, 0)
    pair.now_s += 60
    trial = pair.gate.begin(pair.now_s)
    pair.gate.end(late, 1000, 0, pair.now_s)
    assert pair.state() is GateState.RETRYING
    pair.gate.end(trial, 0, 10, pair.now_s)
    assert pair.state() is GateState.OFF


# retry


def test_a_retry_is_due_after_the_time_and_one_request_at_a_time_takes_it():
    pair = turned_off()
    pair.now_s += 59.9
    assert pair.gate.begin(pair.now_s) is None
    pair.now_s += 0.1
    trial = pair.gate.begin(pair.now_s)
    assert trial is not None
    assert [pair.gate.begin(pair.now_s) for _ in range(3)] == [None] * 3
    pair.gate.end(trial, 0, 0, pair.now_s)  # it was cancelled: nothing was compared
    assert pair.state() is GateState.RETRYING
    assert pair.gate.begin(pair.now_s) is not None


def test_a_good_draft_comes_back_and_its_retry_is_the_beginning_of_the_next_window():
    pair = retrying()
    assert pair.answer(9)
    seen = pair.view()
    assert (seen.state, seen.acceptance_ratio, seen.compared_tokens) == (GateState.ON, 0.9, 10)
    assert not pair.gate.closed
    assert pair.answers(*[9] * 10) == [True] * 10


def test_a_retry_must_exceed_the_bound_by_the_margin():
    for accepted, state in ((4, GateState.OFF), (5, GateState.ON)):
        pair = retrying()
        pair.answer(accepted)
        assert pair.state() is state


def test_each_retry_that_fails_doubles_the_wait_up_to_a_bound_and_one_that_succeeds_starts_anew():
    pair = turned_off()
    waits = []
    for _ in range(MAX_DOUBLINGS + 2):
        waits.append(pair.view().retry_in_s)
        pair.now_s += waits[-1]
        assert pair.answer(0)
    assert waits == [60, 120, 240, 480, 960, 960]
    pair.now_s += 960
    assert pair.answer(10)
    pair.answers(0, 0, 0, 0)
    assert (pair.view().retry_in_s, pair.view().switched_off) == (60, 2)


def test_an_operator_who_puts_another_draft_in_its_place_need_not_wait():
    pair = turned_off()
    pair.gate.reset(pair.now_s)
    assert pair.answer(9)
    assert pair.state() is GateState.ON
    pair.answers(0, 0)
    pair.gate.reset(pair.now_s)
    assert (pair.state(), pair.view().compared_tokens) == (GateState.ON, 0)


# rules that change


def test_other_rules_judge_what_was_measured_before():
    pair = Pair()
    pair.answers(5, 5, 5, 5)
    pair.gate.configure(msgspec.structs.replace(RULES, min_acceptance=0.6))
    assert pair.view().compared_tokens == 40
    assert pair.answers(5, 5) == [True, False]


def test_a_longer_window_keeps_what_there_is_and_a_shorter_one_keeps_the_newest():
    pair = Pair()
    pair.answers(1, 1, 9, 9)
    pair.gate.configure(msgspec.structs.replace(RULES, window_tokens=400))
    assert (pair.view().compared_tokens, pair.view().acceptance_ratio) == (40, 0.5)
    pair.gate.configure(msgspec.structs.replace(RULES, window_tokens=20))
    assert (pair.view().compared_tokens, pair.view().acceptance_ratio) == (20, 0.9)


def test_a_bound_of_nothing_switches_the_gate_off_and_a_pair_that_was_off_speculates_again():
    pair = turned_off()
    pair.gate.configure(msgspec.structs.replace(RULES, min_acceptance=0))
    assert not pair.gate.closed
    assert pair.answers(*[0] * 10) == [True] * 10


def test_the_configuration_in_force_has_these_rules():
    assert gate_rules(load().speculation) == GateRules()


# whatever happens


@given(
    st.lists(
        st.tuples(st.sampled_from(["begin", "end", "wait", "reset", "configure"]), st.integers(0, 60)), max_size=60
    )
)
def test_at_most_one_request_speculates_in_a_retry_and_the_books_balance(events):
    pair, running = Pair(), []
    for event, number in events:
        match event:
            case "begin":
                granted = pair.gate.begin(pair.now_s)
                if granted is not None:
                    running.append(granted)
            case "end" if running:
                pair.gate.end(running.pop(number % len(running)), number, 60 - number, pair.now_s)
            case "wait":
                pair.now_s += number
            case "reset":
                pair.gate.reset(pair.now_s)
            case "configure":
                pair.gate.configure(msgspec.structs.replace(RULES, window_tokens=number + 1))
        seen = pair.view()
        assert seen.compared_tokens >= 0
        assert seen.acceptance_ratio is None or 0 <= seen.acceptance_ratio <= 1
        if seen.state is GateState.RETRYING and pair.gate.begin(pair.now_s) is not None:
            assert pair.gate.begin(pair.now_s) is None
            pair.gate.reset(pair.now_s)
