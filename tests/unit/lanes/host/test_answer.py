"""From what an engine emits to what the router receives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes import wire
from lanes.engines.base import Emission
from lanes.engines.scripted import EOS, ScriptedTokenizer
from lanes.errors import RequestRefused
from lanes.host.answer import Answer

NOTHING = wire.Emitted()


def answer(*stop, emitted=NOTHING):
    submit = wire.Submit("a", "m", "interactive", wire.TextPrompt("x"), 99, wire.Sampling(), stop=stop, emitted=emitted)
    return Answer(submit, 3, ScriptedTokenizer())


def tokens(text):
    return tuple(ScriptedTokenizer().encode(text))


def counted(proposed, accepted, rejected):
    return wire.SpecCounters.of_round("draft_model", proposed, accepted, accepted + rejected)


def test_deltas_follow_each_other_without_gap_and_the_end_says_how_many_there_were():
    made = answer()
    events = [
        *made.take(Emission("a", tokens("ab"))),
        *made.take(Emission("a", tokens("c"))),
        *made.take(Emission("a", (*tokens("d"), EOS), finish="stop")),
    ]
    assert events == [
        wire.Delta("a", 0, tokens("ab"), "ab"),
        wire.Delta("a", 2, tokens("c"), "c"),
        wire.Delta("a", 3, (*tokens("d"), EOS), "d"),
        wire.Finished("a", "stop", 3, 5),
    ]
    assert made.ended


def test_held_back_text_comes_with_the_end_even_if_the_last_step_brings_no_token():
    made = answer("stop")
    assert made.take(Emission("a", tokens("sto"))) == [wire.Delta("a", 0, tokens("sto"), "")]
    assert made.take(Emission("a", finish="cancelled")) == [
        wire.Delta("a", 3, (), "sto"),
        wire.Finished("a", "cancelled", 3, 3),
    ]


def test_a_stop_string_ends_the_answer_and_drops_what_the_step_brought_behind_it():
    made = answer("\n\n")
    events = made.take(Emission("a", tokens("x\n\nyz"), finish="length"))
    assert events == [wire.Delta("a", 0, tokens("x\n\n"), "x"), wire.Finished("a", "stop", 3, 3)]
    assert made.ended


def test_what_was_known_of_the_prompt_is_said_at_the_end_however_early_it_was_known():
    made = answer()
    assert made.take(Emission("a", cached_tokens=2)) == []
    made.take(Emission("a", tokens("x")))
    assert made.take(Emission("a", tokens("y"), finish="length"))[-1] == wire.Finished("a", "length", 3, 2, 2)


def test_an_error_is_the_last_event():
    made = answer()
    made.take(Emission("a", tokens("x")))
    assert made.take(Emission("a", error="broken")) == [wire.Failed("a", "engine_error", "broken")]
    assert made.ended


def test_accepted_tokens_behind_a_stop_string_count_as_ignored():
    made = answer("b")
    events = made.take(Emission("a", tokens("abcd"), accepted=3, counters=counted(5, 3, 1)))
    assert events[-1].speculative == wire.SpecCounters(1, 5, 2, 1, 2, accepted_at=(1, 1), compared_at=(1, 1, 0, 1))
    assert events[-1].completion_tokens == 2


def test_a_request_that_does_not_speculate_has_no_counters():
    assert answer().take(Emission("a", tokens("a"), finish="length"))[-1].speculative is None


@given(
    st.lists(
        st.integers(0, 4).flatmap(
            lambda accepted: st.tuples(st.just(accepted), st.integers(0, 2), st.text("abc", min_size=1, max_size=1))
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_drafted_token_is_accounted_for_wherever_a_stop_string_ends_the_answer(rounds):
    made = answer("ab", "ca")
    for accepted, rejected, letter in rounds:
        drafted = accepted + rejected
        emission = Emission(
            "a", tokens("bcab"[:accepted] + letter), accepted=accepted, counters=counted(drafted, accepted, rejected)
        )
        if made.ended:
            return
        events = made.take(emission)
    end = events[-1] if made.ended else made.take(Emission("a", finish="cancelled"))[-1]
    counters = end.speculative
    assert counters.accepted + counters.rejected + counters.ignored == counters.proposed
    assert sum(counters.accepted_at) == counters.accepted
    assert sum(counters.compared_at) == counters.accepted + counters.rejected
    assert counters.accepted <= end.completion_tokens


# on another host


@given(
    st.text(st.sampled_from("abn\n\u00e9\u4e2d\U0001f980"), min_size=1, max_size=20),
    st.lists(st.text(st.sampled_from("abn\n\u00e9\U0001f980"), min_size=1, max_size=4), max_size=3),
    st.integers(0, 80),
    st.integers(1, 5),
)
def test_an_answer_that_goes_on_elsewhere_has_the_text_that_it_would_have_had_wherever_it_was_cut(
    text, stop, cut, step
):
    def events_of(made, token_ids):
        events = []
        for at in range(0, len(token_ids), step):
            if not made.ended:
                events += made.take(Emission("a", token_ids[at : at + step]))
        return events if made.ended else events + made.take(Emission("a", finish="length"))

    token_ids = tokens(text)
    whole = events_of(answer(*stop), token_ids)
    first = answer(*stop)
    given_events = first.take(Emission("a", token_ids[:cut]))
    if first.ended:
        return
    given_text = "".join(event.text for event in given_events)
    second = answer(*stop, emitted=wire.Emitted(token_ids[:cut], len(given_text)))
    rest = events_of(second, token_ids[cut:])
    text_of_rest = "".join(event.text for event in rest if isinstance(event, wire.Delta))
    assert given_text + text_of_rest == "".join(event.text for event in whole if isinstance(event, wire.Delta))
    assert rest[-1] == whole[-1]
    assert all(event.index >= len(token_ids[:cut]) for event in rest if isinstance(event, wire.Delta))


def test_counters_go_on_where_they_were():
    made = answer(emitted=wire.Emitted(tokens("ab"), 2, wire.SpecCounters(2, 5, 3, 1, 1)))
    events = made.take(Emission("a", tokens("cd"), accepted=1, counters=counted(3, 1, 2), finish="length"))
    assert (
        events[0].speculative
        == events[1].speculative
        == wire.SpecCounters(3, 8, 4, 3, 1, accepted_at=(1,), compared_at=(1, 1, 1))
    )
    assert (events[0].index, events[1].completion_tokens) == (2, 4)


@pytest.mark.parametrize("chars", [0, 3])
def test_an_answer_whose_text_is_not_what_its_tokens_make_is_refused_rather_than_garbled(chars):
    with pytest.raises(RequestRefused, match="cannot be resumed") as caught:
        answer(emitted=wire.Emitted(tokens("ab"), chars))
    assert caught.value.code == "engine_error"
