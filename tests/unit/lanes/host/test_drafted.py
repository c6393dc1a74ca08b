"""Which characters of an answer were drafted."""

from hypothesis import given
from hypothesis import strategies as st

from lanes import wire
from lanes.client import Generation
from lanes.engines.base import Emission
from lanes.engines.scripted import ScriptedTokenizer
from lanes.host.answer import Answer

ALPHABET = "ab\né🦀"
NOTHING = wire.Emitted()


def tokens(text):
    return tuple(ScriptedTokenizer().encode(text))


def answer(*stop, mark_drafted=True, emitted=NOTHING):
    submit = wire.Submit(
        "a", "m", "interactive", wire.TextPrompt("x"), 99, wire.Sampling(),
        stop=stop, emitted=emitted, mark_drafted=mark_drafted,
    )  # fmt: skip
    return Answer(submit, 3, ScriptedTokenizer())


def deltas(made, *emissions):
    return [event for emission in emissions for event in made.take(emission) if isinstance(event, wire.Delta)]


def drafted_text(events):
    return "".join(event.text[begin:end] for event in events for begin, end in event.drafted)


def test_the_accepted_tokens_of_a_step_are_marked_and_its_last_is_not():
    (delta,) = deltas(answer(), Emission("a", tokens("abcd"), accepted=3))
    assert (delta.text, delta.drafted) == ("abcd", ((0, 3),))


def test_nothing_is_marked_unless_somebody_asks():
    (delta,) = deltas(answer(mark_drafted=False), Emission("a", tokens("abcd"), accepted=3))
    assert delta.drafted == ()


def test_text_that_was_held_back_is_marked_when_it_is_given_out():
    first, second = deltas(
        answer("stop"), Emission("a", tokens("xst"), accepted=2), Emission("a", tokens("yz"), accepted=1)
    )
    assert (first.text, first.drafted) == ("x", ((0, 1),))
    # "s" was drafted, "t" was not, "y" was, "z" was not
    assert (second.text, second.drafted) == ("styz", ((0, 1), (2, 3)))


def test_a_stop_string_takes_its_marks_along():
    (delta,) = deltas(answer("bc"), Emission("a", tokens("abcd"), accepted=4))
    assert (delta.text, delta.drafted) == ("a", ((0, 1),))


def test_what_an_earlier_host_held_back_counts_as_not_drafted():
    earlier = wire.Emitted(tokens("xst"), 1)
    (delta,) = deltas(answer("stop", emitted=earlier), Emission("a", tokens("ay"), accepted=1))
    assert (delta.text, delta.drafted) == ("stay", ((2, 3),))


@given(st.lists(st.tuples(st.text(ALPHABET, min_size=1, max_size=4), st.integers(0, 4)), max_size=8), st.booleans())
def test_every_drafted_character_is_marked_once_whatever_is_held_back(steps, stops):
    made = answer(*(["ab\nab"] if stops else []))
    events, expected = [], ""
    for text, accepted in steps:
        if made.ended:
            break
        events += deltas(made, Emission("a", tokens(text), accepted=min(accepted, len(tokens(text)))))
        # A character may be several tokens: the last one decides.
        expected += "".join(one for at, one in enumerate(text) if len(tokens(text[: at + 1])) <= accepted)
    if not made.ended:
        events += deltas(made, Emission("a", finish="length"))
        assert drafted_text(events) == expected
    else:
        assert expected.startswith(drafted_text(events))


def test_deltas_that_wait_for_a_slow_reader_keep_their_marks():
    generation = Generation(
        wire.Submit("a", "m", "interactive", wire.TextPrompt("x"), 9, wire.Sampling()), lambda _: None
    )
    generation.deliver(wire.Delta("a", 0, (1,), "ab", drafted=((0, 1),)))
    generation.deliver(wire.Delta("a", 1, (2,), "cd", drafted=((1, 2),)))
    (merged,) = generation._inbox
    assert (merged.text, merged.drafted) == ("abcd", ((0, 1), (3, 4)))
