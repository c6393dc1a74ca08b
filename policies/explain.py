"""Why a request takes the lane it takes: every rule in order, what it saw, and which one decided."""

import msgspec

from policies.auto import AutoFacts, Room, choose
from policies.classify import RequestFacts, client_of, considered, named
from policies.schema import Config


class ExplainedRule(msgspec.Struct, frozen=True):
    """One line of an explanation.

    ``outcome`` is ``decides``, ``ignored`` (a hint that does not count), ``silent`` (the rule has nothing to say) or
    ``not reached`` (an earlier rule had decided; ``detail`` still says what this one saw).
    """

    rule: str
    outcome: str
    detail: str


def explain_auto(config: Config, facts: AutoFacts) -> ExplainedRule:
    """The lane that ``auto`` would choose while nobody else is there, and why."""
    lane, reason = choose(config.routing.auto, facts, Room())
    limit = "no limit" if facts.max_tokens is None else f"at most {facts.max_tokens}"
    detail = (
        f"on an idle router lane {lane}: about {facts.prompt_tokens} prompt tokens, {limit} of an answer, "
        f"{'streamed' if facts.stream else 'not streamed'}, {'tools' if facts.tools else 'no tools'}"
    )
    return ExplainedRule(reason, "decides", detail)


def explain(config: Config, facts: RequestFacts) -> list[ExplainedRule]:
    """Every rule in the order asked. Raises :class:`UnknownModel` and :class:`UnknownPreset`, as ``classify`` does."""
    _models, preset = named(config, facts)
    lines: list[ExplainedRule] = []
    decided = False
    for step in considered(config, facts, preset, client_of(config, facts)):
        lines.append(ExplainedRule(step.rule, "not reached" if decided else step.outcome, step.detail))
        decided = decided or step.lane is not None
    return lines
