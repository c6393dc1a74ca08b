"""What a pair is and needs, before any of its weights is read. Runs on the device thread, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping

from lanes import wire
from lanes.host.examine import Examined
from lanes.host.models import build, cache_bytes, context_tokens, trimmable, weight_bytes
from lanes.host.probe import speculation_paths


def facts_of(examined: Examined, lanes: Mapping[wire.Lane, wire.LaneSpec]) -> wire.PairFacts:
    """Build the pair of arrays that are not read, and look at it.

    Where the context is bounded by the configuration, caches are counted for as many sequences as the lanes may run at
    once; otherwise one of the whole context for each lane, for models allow contexts that few requests use.

    Raises:
        ModelLoadFailed: it cannot be loaded.
    """
    target = build(examined.target)
    draft = build(examined.draft) if examined.draft is not None else None
    context = context_tokens(examined)
    target_cache_bytes = cache_bytes(target, context)
    draft_cache_bytes = cache_bytes(draft, context) if draft is not None else 0
    drafting = lanes["interactive"].max_active
    sequences = sum(lane.max_active for lane in lanes.values())
    at_bounds_bytes = sequences * target_cache_bytes + drafting * draft_cache_bytes
    bounded = examined.spec.context_tokens is not None
    return wire.PairFacts(
        context_tokens=context,
        target_bytes=weight_bytes(target),
        draft_bytes=weight_bytes(draft) if draft is not None else 0,
        kv_bytes=at_bounds_bytes if bounded else len(lanes) * target_cache_bytes + draft_cache_bytes,
        kv_sequences=sequences if bounded else len(lanes),
        kv_at_bounds_bytes=at_bounds_bytes,
        target_family=examined.target.family,
        draft_family=examined.draft.family if examined.draft is not None else "",
        same_vocabulary=examined.same_vocabulary,
        same_template=examined.same_template,
        cache_trimmable=trimmable(target) and (draft is None or trimmable(draft)),
        paths=speculation_paths(target),
    )
