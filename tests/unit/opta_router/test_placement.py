"""Which of several models answers."""

from hypothesis import given
from hypothesis import strategies as st

from lanes import wire
from opta_router.placement import BLOCK_CHARS, LOAD_FACTOR, MAX_PREFIXES, Placement

MODELS = ("a", "b", "c")
WORK = 100


def chat(*contents, system="be brief"):
    turns = [("user", "assistant")[at % 2] for at in range(len(contents))]
    said = (wire.ChatMessage(role, content) for role, content in zip(turns, contents, strict=True))
    return wire.ChatPrompt((wire.ChatMessage("system", system), *said))


def placed(placement, prompt, candidates=MODELS):
    model = placement.choose(candidates, prompt, WORK)
    placement.begin(model, WORK)
    return model


def test_a_request_goes_where_the_least_work_is():
    placement = Placement()
    assert [placed(placement, chat(str(number))) for number in range(6)] == ["a", "b", "c", "a", "b", "c"]
    placement.end("b", WORK)
    assert placed(placement, chat("next")) == "b"


def test_the_next_turn_of_a_conversation_goes_where_the_last_one_was():
    placement = Placement()
    placement.begin("a", 1)
    placement.begin("b", 1)
    assert placed(placement, chat("hello")) == "c"
    placement.end("c", WORK)
    placement.begin("c", 2)
    assert placement.choose(MODELS, chat("hello", "hi", "how are you"), WORK) == "c"
    assert placement.choose(MODELS, chat("something else"), WORK) == "a"


def test_a_system_message_alone_makes_no_conversation():
    placement = Placement()
    assert placed(placement, chat("one")) != placed(placement, chat("another"))


def test_a_text_prompt_is_known_by_its_blocks():
    placement = Placement()
    start = "x" * BLOCK_CHARS
    model = placed(placement, wire.TextPrompt(start + "and so on"))
    placement.end(model, WORK)
    placement.begin(model, 1)
    assert placement.choose(MODELS, wire.TextPrompt(start + "or otherwise"), WORK) == model


def test_a_conversation_leaves_a_model_that_has_too_much_to_do_and_stays_where_it_went():
    placement = Placement()
    home = placed(placement, chat("hello"))
    for _ in range(9):
        placement.begin(home, WORK)
    elsewhere = placement.choose(MODELS, chat("hello"), WORK)
    assert elsewhere != home
    for _ in range(10):
        placement.end(home, WORK)
    assert placement.choose(MODELS, chat("hello"), WORK) == elsewhere


def test_conversations_on_an_idle_router_are_spread():
    placement = Placement()
    assert [placement.choose(MODELS, chat(str(number)), WORK) for number in range(6)] == ["a", "b", "c"] * 2


def test_a_huge_prompt_does_not_make_the_router_forget_the_others():
    placement = Placement()
    home = placement.choose(MODELS, chat("hello"), WORK)
    for number in range(8):
        placement.choose(MODELS, wire.TextPrompt(f"{number}" * 4_000_000), WORK)
    assert placement.choose(MODELS, chat("hello"), WORK) == home


def test_a_model_that_is_no_candidate_is_not_chosen_though_it_knows_the_prefix():
    placement = Placement()
    home = placed(placement, chat("hello"))
    others = tuple(model for model in MODELS if model != home)
    assert placement.choose(others, chat("hello"), WORK) in others


def test_what_is_remembered_is_bounded():
    placement = Placement()
    for number in range(MAX_PREFIXES + 100):
        placement.choose(MODELS, wire.TextPrompt(str(number)), 1)
    assert len(placement._models) == MAX_PREFIXES


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=80))
def test_no_model_is_given_much_more_than_its_part(steps):
    placement = Placement()
    running = []
    for conversation, ends in steps:
        if ends and running:
            placement.end(running.pop(0), WORK)
            continue
        model = placed(placement, chat(str(conversation)))
        running.append(model)
        mean = sum(map(placement.outstanding, MODELS)) / len(MODELS)
        assert placement.outstanding(model) <= LOAD_FACTOR * mean + WORK
    assert sum(map(placement.outstanding, MODELS)) == WORK * len(running)
