"""The embedded pair, loaded once. Everything here runs on pytest's own thread: MLX streams belong to one."""

import pytest
from vllm_mlx.mlx_streams import bind_generation_streams

from lanes import embedded
from lanes.engines import buffers, cpu_activations, cpu_attention, cpu_rope
from lanes.engines.draft_length import DraftLength
from lanes.host.models import load_pair
from lanes.wire import ModelSpec

PROMPT_TOKENS = 24


@pytest.fixture(scope="session")
def pair():
    bind_generation_streams()
    cpu_attention.install()
    cpu_activations.install()
    cpu_rope.install()
    buffers.keep(None)
    return load_pair(ModelSpec("opta-tiny", "embedded:target", "embedded:draft"))


@pytest.fixture(scope="session")
def held_out(pair):
    """The beginnings of held-out functions, in token ids."""
    return [tuple(pair.tokenizer.encode(held.prompt)[:PROMPT_TOKENS]) for held in embedded.held_out_prompts()]


@pytest.fixture(scope="module", autouse=True)
def _every_round_drafts_all_it_may():
    """How much to draft follows from measured seconds; here it must not, or no two runs would test the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DraftLength, "choose", lambda self, limit: min(limit, self._costs.max_draft_tokens))
        yield
