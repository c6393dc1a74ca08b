"""What a pair's files say, as the speculation policy wants it."""

from __future__ import annotations

from lanes import wire
from policies.schema import ModelConfig
from policies.speculation import PairCapability


def capability(model: ModelConfig, facts: wire.PairFacts | None) -> PairCapability:
    """What the host found; of a pair that was never looked at, the best is assumed."""
    if facts is None:
        return PairCapability(target=model.target, draft=model.draft)
    return PairCapability(
        target=model.target,
        draft=model.draft,
        target_family=facts.target_family,
        draft_family=facts.draft_family,
        same_vocabulary=facts.same_vocabulary,
        same_template=facts.same_template,
        cache_trimmable=facts.cache_trimmable,
        backend_ok=any(path.lane == "interactive" and path.problem is None for path in facts.paths),
    )
