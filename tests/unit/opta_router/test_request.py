"""What becomes of a canonical request on its way to a host."""

import msgspec
import pytest

from lanes import wire
from opta_router.request import DEFAULT_MAX_TOKENS, GenerationRequest, SamplingParams, estimated_tokens, with_system
from policies.schema import PresetConfig, SamplingPreset

CHAT = wire.ChatPrompt((wire.ChatMessage("user", "x"),))
PRESET = PresetConfig(
    name="p",
    model="m",
    system="be brief",
    sampling=SamplingPreset(temperature=0.5, top_k=7, seed=9, max_tokens=20, stop=("END",)),
)


def submission(preset=None, **fields):
    request = GenerationRequest(operation="chat", model="m", **{"prompt": CHAT, **fields})
    return request.submission("r", "m", "interactive", preset, 3)


def test_what_nobody_said_is_the_wires_default():
    submit = submission()
    assert submit.max_tokens == DEFAULT_MAX_TOKENS
    assert (submit.stop, submit.num_draft_tokens, submit.prompt) == ((), 3, CHAT)
    assert submit.sampling == wire.Sampling(seed=submit.sampling.seed, seeded=False)


def test_a_preset_fills_the_gaps():
    submit = submission(PRESET)
    assert (submit.max_tokens, submit.stop) == (20, ("END",))
    assert submit.sampling == wire.Sampling(temperature=0.5, top_k=7, seed=9)
    assert submit.prompt.messages[0] == wire.ChatMessage("system", "be brief")


def test_the_request_wins_over_the_preset_even_with_zeros():
    sampling = SamplingParams(temperature=0, top_k=0, seed=0)
    submit = submission(PRESET, max_tokens=1, stop=("X",), sampling=sampling)
    assert (submit.max_tokens, submit.stop) == (1, ("X",))
    assert submit.sampling == wire.Sampling(temperature=0, top_k=0, seed=0)


@pytest.mark.parametrize(
    "prompt",
    [
        wire.TextPrompt("x"),
        wire.TokenPrompt((1,)),
        wire.ChatPrompt((wire.ChatMessage("user", "x"), wire.ChatMessage("system", "mine"))),
    ],
)
def test_a_system_prompt_goes_in_front_of_chats_that_have_none_and_nowhere_else(prompt):
    assert with_system(prompt, "be brief") is prompt
    assert with_system(CHAT, None) is CHAT


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1])
def test_any_seed_that_a_client_may_send_fits_and_stays_the_same(seed):
    seeds = {submission(sampling=SamplingParams(seed=seed)).sampling.seed for _ in range(2)}
    assert len(seeds) == 1
    assert 0 <= seeds.pop() < 2**63


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (wire.TokenPrompt((1, 2, 3)), 3),
        (wire.TextPrompt("x" * 40), 10),
        (wire.TextPrompt("ü" * 40), 20),
        (wire.ChatPrompt((wire.ChatMessage("system", "x" * 8), wire.ChatMessage("user", "x" * 12))), 5),
    ],
)
def test_the_tokens_of_a_prompt_are_estimated_from_its_bytes(prompt, tokens):
    assert estimated_tokens(prompt) == tokens


def test_auto_knows_the_limit_of_the_request_and_else_of_its_preset():
    preset = PresetConfig(name="p", model="m", sampling=SamplingPreset(max_tokens=7))
    request = GenerationRequest(operation="chat", model="m", prompt=wire.TextPrompt("x"))
    assert request.auto_facts(None).max_tokens is None
    assert request.auto_facts(preset).max_tokens == 7
    assert msgspec.structs.replace(request, max_tokens=5).auto_facts(preset).max_tokens == 5
