"""The prompts that benchmarks share."""

import pytest

from bench.prompts import CLASSES, Prompt, load


def test_every_class_has_prompts_of_different_names():
    prompts = [prompt for name in CLASSES for prompt in load()[name]]
    assert all(len(load()[name]) >= 6 for name in CLASSES)
    assert len({prompt.id for prompt in prompts}) == len(prompts)


def test_only_the_classes_that_are_named_are_loaded():
    assert list(load(["json", "code"])) == ["json", "code"]


def test_a_chat_is_given_as_apis_take_it():
    turns = next(prompt for prompt in load()["chat"] if prompt.id == "second-turn").chat()
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]


def test_an_edits_answer_goes_on_with_the_changed_piece_and_is_mostly_a_copy():
    for prompt in load()["editing"]:
        lines = prompt.answer.splitlines()
        assert sum(line in prompt.text for line in lines) / len(lines) > 0.8, prompt.id


@pytest.mark.parametrize("fields", [{}, {"text": "a", "messages": ({"role": "user", "content": "b"},)}])
def test_a_prompt_is_text_or_messages(fields):
    with pytest.raises(ValueError, match="either text or messages"):
        Prompt(id="x", **fields)
