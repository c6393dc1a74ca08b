"""One copy of the target's weights, whatever the lanes are doing."""

import math

import anyio
import pytest

from lanes import embedded, wire
from lanes.supervisor import Supervisor
from opta_router.serving import host_settings
from policies.load import load

SEQUENCES, ANSWER_TOKENS, CACHE_STEP_TOKENS = 9, 96, 256
LAYERS, KEYS_AND_VALUES, HEADS, HEAD_SIZE, FLOAT_BYTES = 7, 2, 4, 64, 4
DRAFT_LAYERS = 3


def _cache_bytes(layers, tokens):
    rounded = math.ceil(tokens / CACHE_STEP_TOKENS) * CACHE_STEP_TOKENS
    return layers * KEYS_AND_VALUES * HEADS * HEAD_SIZE * FLOAT_BYTES * rounded


@pytest.mark.anyio
async def test_both_lanes_work_on_one_copy_of_the_weights():
    supervisor = Supervisor(host_settings(load()))
    most_bytes = 0
    both_worked = False
    async with anyio.create_task_group() as tg:
        await tg.start(supervisor.run)
        await supervisor.wait_ready()
        info = supervisor.pairs.loaded["opta-tiny"]
        prompts = embedded.held_out_prompts()
        generations = [_submit(supervisor, number, prompts[number].prompt) for number in range(SEQUENCES)]
        prompt_tokens = []
        for generation in generations:
            while not generation.ended:
                events = await generation.receive()
                prompt_tokens += [event.prompt_tokens for event in events if isinstance(event, wire.Started)]
                if supervisor.stats is not None:
                    # What is kept of sequences that have ended, or joined the batch, has a bound of its own.
                    kept_bytes = sum(kept.size_bytes for kept in supervisor.stats.prompt_caches.values())
                    most_bytes = max(most_bytes, supervisor.stats.active_memory_bytes - kept_bytes)
                    both_worked |= all(lane.active for lane in supervisor.stats.lanes.values())
        tg.cancel_scope.cancel()
    weights = info.target_bytes + info.draft_bytes
    lengths = [tokens + 4 * ANSWER_TOKENS for tokens in prompt_tokens]
    caches = sum(_cache_bytes(LAYERS, length) for length in lengths) + _cache_bytes(DRAFT_LAYERS, lengths[0])
    assert both_worked
    assert weights < most_bytes <= (weights + caches) * 1.15, f"{most_bytes} of {weights} + {caches}"
    assert most_bytes < 2 * info.target_bytes


def _submit(supervisor, number, prompt):
    lane = "throughput" if number else "interactive"
    submit = wire.Submit(
        f"request-{number}",
        "opta-tiny",
        lane,
        wire.TextPrompt(prompt),
        ANSWER_TOKENS if number else 4 * ANSWER_TOKENS,
        wire.Sampling(temperature=0.0),
        num_draft_tokens=0 if number else 8,
    )
    return supervisor.submit(submit, lambda _: None)
