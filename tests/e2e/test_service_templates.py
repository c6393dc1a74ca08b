"""Chat templates that reject messages: a model's own, over HTTP."""

import json
import shutil

import pytest

from lanes import embedded
from tests.e2e.router_process import router

CANARY = "canary-in-the-prompt"
TEMPLATE = (
    "{% if messages[0]['role'] == 'user' %}{{ messages[0]['content'] }}"
    "{% elif messages[0]['role'] == 'system' %}{{ raise_exception('No system turns, said the template') }}"
    "{% else %}{{ raise_exception('What is this: ' + messages[0]['content']) }}{% endif %}"
)


@pytest.fixture(scope="module")
def picky(tmp_path_factory):
    """The embedded target under a template that takes a user's turn first, and nothing else."""
    folder = tmp_path_factory.mktemp("picky")
    shutil.copytree(embedded.path("target"), folder / "target")
    file = folder / "target" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TEMPLATE}))
    config = f"models: [{{name: picky, target: {folder / 'target'}, preload: true}}]\n"
    with router(folder, config) as running:
        yield running


def ask(running, role):
    body = {"model": "picky", "messages": [{"role": role, "content": CANARY}], "max_tokens": 2}
    return running.post("/v1/chat/completions", body)


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_what_a_template_says_is_in_the_log_and_never_in_the_answer(picky, role):
    answer = ask(picky, role)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_prompt", "messages")
    assert "chat template rejects these messages" in error["message"]
    assert "said the template" not in answer.text
    assert "What is this" not in answer.text
    assert CANARY not in answer.text
    assert ask(picky, "user").json()["usage"]["completion_tokens"] == 2


def test_the_log_has_the_templates_own_words_and_no_words_of_a_prompt(picky):
    for role in ("system", "assistant"):
        ask(picky, role)
    log = picky.said()
    assert "a chat template rejected 1 messages: TemplateError: No system turns, said the template" in log
    assert "a chat template rejected 1 messages: TemplateError\n" in log
    assert CANARY not in log
