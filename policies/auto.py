"""Which lane an ``auto`` request takes, by what is known of it and of the queues. Pure.

The interactive lane is for somebody who reads along. What shows that nobody does, or that the request would hold one of
the lane's few slots for long before its first token, sends it to the throughput lane; so does a lane without room. What
turns out to be long only while it is answered is moved later (``lanes.interactive.demote_after_tokens``).
"""

from typing import Literal, TypeAlias

import msgspec

from policies.schema import AutoConfig, LaneName

AutoReason: TypeAlias = Literal[
    "auto:long_prompt", "auto:tools", "auto:long_answer", "auto:busy", "auto:not_streaming", "auto:room"
]


class AutoFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the request says. ``prompt_tokens`` is an estimate; ``max_tokens`` is None if nobody set it."""

    stream: bool = True
    prompt_tokens: int = 0
    max_tokens: int | None = None
    tools: bool = False


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What the queues say. ``interactive`` and ``throughput``: the request would run there at once.

    ``throughput_queue``: it would at least be let in there. ``batch``: somebody is being served there now.
    """

    interactive: bool = True
    throughput: bool = True
    throughput_queue: bool = True
    batch: bool = False


def choose(rules: AutoConfig, facts: AutoFacts, room: Room) -> tuple[LaneName, AutoReason]:
    """The lane, and the first of these reasons that holds.

    - ``auto:long_prompt``: the prompt is longer than ``routing.auto.long_prompt_tokens``;
    - ``auto:tools``: tools are offered and the answer is not streamed, as agents ask;
    - ``auto:long_answer``: not streamed, and more than ``routing.auto.long_answer_tokens`` were asked for;
    - ``auto:busy``: the interactive lane has no room;
    - ``auto:not_streaming``: not streamed, and a batch is running that has room for one more;
    - ``auto:room``: the interactive lane has room, and so it does if the throughput lane would turn the request away.
    """
    reason = _reason(rules, facts, room)
    if reason == "auto:room" or (room.interactive and not room.throughput_queue):
        return "interactive", "auto:room"
    return "throughput", reason


def _reason(rules: AutoConfig, facts: AutoFacts, room: Room) -> AutoReason:
    if facts.prompt_tokens > rules.long_prompt_tokens:
        return "auto:long_prompt"
    if facts.tools and not facts.stream:
        return "auto:tools"
    if not facts.stream and facts.max_tokens is not None and facts.max_tokens > rules.long_answer_tokens:
        return "auto:long_answer"
    if not room.interactive:
        return "auto:busy"
    if not facts.stream and room.batch and room.throughput:
        return "auto:not_streaming"
    return "auto:room"
