"""From what an engine emits to what the router receives."""

from hypothesis import given
from hypothesis import strategies as st

from lanes import wire
from lanes.engines.base import Emission
from lanes.engines.scripted import EOS, ScriptedTokenizer
from lanes.host.answer import Answer


def answer(*stop):
    submit = wire.Submit("a", "m", "interactive", wire.TextPrompt("x"), 99, wire.Sampling(), stop=stop)
    return Answer(submit, 3, ScriptedTokenizer())


def tokens(text):
    return tuple(ScriptedTokenizer().encode(text))


def counted(proposed, accepted, rejected):
    return wire.SpecCounters(1, proposed, accepted, rejected, proposed - accepted - rejected)


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


def test_an_error_is_the_last_event():
    made = answer()
    made.take(Emission("a", tokens("x")))
    assert made.take(Emission("a", error="broken")) == [wire.Failed("a", "engine_error", "broken")]
    assert made.ended


def test_accepted_tokens_behind_a_stop_string_count_as_ignored():
    made = answer("b")
    events = made.take(Emission("a", tokens("abcd"), accepted=3, counters=counted(5, 3, 1)))
    assert events[-1].speculative == wire.SpecCounters(1, 5, 2, 1, 2)
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
    assert counters.accepted <= end.completion_tokens
