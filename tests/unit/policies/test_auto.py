"""Which lane an ``auto`` request takes, and for which reason."""

import itertools

import pytest

from policies.auto import AutoFacts, Room, choose
from policies.schema import AutoConfig

RULES = AutoConfig(long_prompt_tokens=100, long_answer_tokens=50)
AGENT = {"stream": False}
BATCH = Room(batch=True)


@pytest.mark.parametrize(
    ("facts", "room", "lane", "reason"),
    [
        ({}, Room(), "interactive", "auto:room"),
        ({"prompt_tokens": 100}, Room(), "interactive", "auto:room"),
        ({"prompt_tokens": 101}, Room(), "throughput", "auto:long_prompt"),
        ({"tools": True}, Room(), "interactive", "auto:room"),
        ({"tools": True, **AGENT}, Room(), "throughput", "auto:tools"),
        ({"max_tokens": 51}, Room(), "interactive", "auto:room"),
        ({"max_tokens": 50, **AGENT}, Room(), "interactive", "auto:room"),
        ({"max_tokens": 51, **AGENT}, Room(), "throughput", "auto:long_answer"),
        ({}, Room(interactive=False), "throughput", "auto:busy"),
        (AGENT, Room(), "interactive", "auto:room"),
        (AGENT, BATCH, "throughput", "auto:not_streaming"),
        ({}, BATCH, "interactive", "auto:room"),
        (AGENT, Room(batch=True, throughput=False), "interactive", "auto:room"),
        ({"prompt_tokens": 101, "tools": True, **AGENT}, Room(interactive=False), "throughput", "auto:long_prompt"),
    ],
)
def test_the_first_reason_that_holds_decides(facts, room, lane, reason):
    assert choose(RULES, AutoFacts(**facts), room) == (lane, reason)


@pytest.mark.parametrize(
    ("stream", "prompt_tokens", "max_tokens", "tools"),
    list(itertools.product([True, False], [0, 1000], [None, 1000], [True, False])),
)
def test_a_throughput_lane_that_takes_nobody_gets_nobody_while_the_other_has_room(
    stream, prompt_tokens, max_tokens, tools
):
    facts = AutoFacts(stream=stream, prompt_tokens=prompt_tokens, max_tokens=max_tokens, tools=tools)
    full = Room(throughput=False, throughput_queue=False, batch=True)
    assert choose(RULES, facts, full) == ("interactive", "auto:room")
