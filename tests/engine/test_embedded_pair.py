"""What is promised of the pair that ships with the package."""

import ast

import mlx_lm
import pytest

from bench.pair import answer
from lanes import embedded
from lanes.engines.base import SequenceSpec
from lanes.engines.speculative import SpeculativeEngine
from lanes.engines.throughput import ThroughputEngine
from lanes.testing import GREEDY, Driver

MAX_PACKAGE_BYTES = 30_000_000
MIN_ACCEPTANCE = 0.60
PROMPTS, ANSWER_TOKENS = 10, 72
DRAFT_TOKENS = 3  # what mlx-lm's server drafts if nobody says otherwise


@pytest.fixture(scope="module", params=embedded.PARTS)
def part(request):
    return request.param


def test_each_model_loads_with_plain_mlx_lm(part):
    model, tokenizer = mlx_lm.load(str(embedded.path(part)))
    assert model.args.vocab_size == len(tokenizer.get_vocab())
    assert tokenizer.eos_token_ids == {0, 4}
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)[-1] == 3


def test_both_together_stay_small_enough_to_ship():
    files = [file for part in embedded.PARTS for file in embedded.path(part).iterdir()]
    assert sum(file.stat().st_size for file in files) <= MAX_PACKAGE_BYTES


def test_an_unknown_part_is_refused_by_name():
    with pytest.raises(ValueError, match="embedded:middle does not exist; allowed: embedded:target, embedded:draft"):
        embedded.path("middle")


def test_draft_is_accepted_on_held_out_code_and_changes_nothing(pair):
    prompts = [tuple(pair.tokenizer.encode(held.prompt)) for held in embedded.held_out_prompts()[:PROMPTS]]
    without = Driver(ThroughputEngine(pair.target, pair.eos, PROMPTS))
    plain = [without.add(SequenceSpec(str(n), prompt, ANSWER_TOKENS, GREEDY)) for n, prompt in enumerate(prompts)]
    without.finish()
    engine = SpeculativeEngine(pair.target, pair.draft, pair.eos, DRAFT_TOKENS)
    accepted = compared = 0
    for prompt, expected in zip(prompts, plain, strict=True):
        speculative = answer(engine, prompt, ANSWER_TOKENS, DRAFT_TOKENS)
        assert list(speculative.token_ids) == expected.token_ids
        accepted += speculative.counters.accepted
        compared += speculative.counters.accepted + speculative.counters.rejected
    assert accepted / compared >= MIN_ACCEPTANCE, f"{accepted} of {compared}"


def test_who_wants_no_draft_gets_none_and_the_same_answer(pair):
    engine = SpeculativeEngine(pair.target, pair.draft, pair.eos, DRAFT_TOKENS)
    prompt = tuple(pair.tokenizer.encode(embedded.held_out_prompts()[0].prompt))
    plain = answer(engine, prompt, ANSWER_TOKENS, 0)
    assert plain.counters.proposed == 0
    assert plain.token_ids == answer(engine, prompt, ANSWER_TOKENS, DRAFT_TOKENS).token_ids


@pytest.mark.parametrize("wish", ["reverses a string", "returns the sum of a list of numbers", "reads a file"])
def test_asked_for_a_function_it_writes_python_that_parses(pair, wish):
    engine = SpeculativeEngine(pair.target, pair.draft, pair.eos, DRAFT_TOKENS)
    messages = [{"role": "user", "content": f"write a function that {wish}"}]
    prompt = tuple(pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True))
    token_ids = answer(engine, prompt, 200, DRAFT_TOKENS).token_ids
    assert token_ids[-1] in pair.eos
    (function,) = ast.parse(pair.tokenizer.decode(list(token_ids[:-1]))).body
    assert isinstance(function, ast.FunctionDef)
