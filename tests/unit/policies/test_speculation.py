from typing import Any

import msgspec
import pytest

from policies.errors import ConfigError, SpeculationUnsupported
from policies.load import load
from policies.schema import ApprovedPair, Config, DeniedPair, LaneName
from policies.speculation import (
    PairCapability,
    SpecDecision,
    SpecMatrix,
    SpecPolicy,
    SpecReason,
    SpecRequest,
    builtin_matrix,
    decide,
    judge_pair,
    spec_policy,
)

TARGET, DRAFT = "org/target", "org/draft"
APPROVED = SpecMatrix(approved=(ApprovedPair(target=TARGET, draft=DRAFT, evidence="a benchmark"),))
DENIED = SpecMatrix(denied=(DeniedPair(family="llama", reason="it diverges", link="https://example.org/1"),))
ORDINARY = SpecRequest()


def pair(**facts: Any) -> PairCapability:
    return PairCapability(
        **{"target": TARGET, "draft": DRAFT, "target_family": "llama", "draft_family": "llama", **facts}
    )


def policy(*matrices: SpecMatrix, **settings: Any) -> SpecPolicy:
    return SpecPolicy(matrices=matrices or (APPROVED,), **settings)


@pytest.mark.parametrize(
    ("reason", "requested", "request_", "lane", "pair_", "policy_"),
    [
        (SpecReason.APPROVED, True, ORDINARY, "interactive", pair(), policy()),
        (SpecReason.REQUIRED, True, ORDINARY, "interactive", pair(draft="other"), policy(mode="require")),
        (SpecReason.DENIED, True, ORDINARY, "interactive", pair(), policy(DENIED)),
        (SpecReason.NOT_APPROVED, True, ORDINARY, "interactive", pair(draft="other"), policy()),
        (SpecReason.NO_DRAFT, False, ORDINARY, "interactive", pair(draft=None), policy()),
        (SpecReason.NO_DRAFT, True, SpecRequest(4), "interactive", pair(draft=None), policy()),
        (SpecReason.PROMPT_LOOKUP, True, ORDINARY, "interactive", pair(draft=None), policy(prompt_lookup=True)),
        (SpecReason.LANE, False, ORDINARY, "throughput", pair(), policy()),
        (SpecReason.LANE, True, SpecRequest(4), "throughput", pair(), policy()),
        (SpecReason.TOKENIZER_MISMATCH, True, ORDINARY, "interactive", pair(same_vocabulary=False), policy()),
        (SpecReason.TEMPLATE_MISMATCH, True, ORDINARY, "interactive", pair(same_template=False), policy()),
        (SpecReason.UNSUPPORTED_BACKEND, True, ORDINARY, "interactive", pair(backend_ok=False), policy()),
        (SpecReason.CACHE_NOT_TRIMMABLE, True, ORDINARY, "interactive", pair(cache_trimmable=False), policy()),
        (SpecReason.LOW_ACCEPTANCE, True, ORDINARY, "interactive", pair(low_acceptance=True), policy()),
        (SpecReason.CLIENT_OFF, False, SpecRequest(0), "interactive", pair(), policy()),
        (SpecReason.CLIENT_OFF, False, SpecRequest(0), "throughput", pair(), policy()),
        (SpecReason.OFF, False, ORDINARY, "interactive", pair(), policy(mode="off")),
        (SpecReason.OFF, True, SpecRequest(4), "interactive", pair(), policy(mode="off")),
    ],
)
def test_every_reason_has_its_case(
    reason: SpecReason,
    requested: bool,
    request_: SpecRequest,
    lane: LaneName,
    pair_: PairCapability,
    policy_: SpecPolicy,
) -> None:
    active = reason in {"approved", "required", "prompt_lookup"}
    assert decide(request_, lane, pair_, policy_) == SpecDecision(requested, active, reason, 8 if active else 0)


def test_the_table_above_covers_every_reason() -> None:
    (mark,) = test_every_reason_has_its_case.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == set(SpecReason)


@pytest.mark.parametrize(
    ("reason", "facts", "matrix"),
    [
        (SpecReason.NO_DRAFT, {}, DENIED),
        (SpecReason.NO_DRAFT, {"backend_ok": False}, APPROVED),
        (SpecReason.NO_DRAFT, {"cache_trimmable": False}, APPROVED),
        (SpecReason.PROMPT_LOOKUP, {"same_vocabulary": False}, APPROVED),
    ],
)
def test_prompt_lookup_needs_a_target_that_can_verify_and_no_draft(
    reason: SpecReason, facts: dict[str, bool], matrix: SpecMatrix
) -> None:
    alone = pair(draft=None, draft_family="", **facts)
    assert decide(ORDINARY, "interactive", alone, policy(matrix, prompt_lookup=True)).reason == reason


def test_prompt_lookup_does_not_stand_in_for_a_draft_that_may_not_be_used() -> None:
    found = decide(ORDINARY, "interactive", pair(draft="other"), policy(prompt_lookup=True))
    assert found == SpecDecision(True, False, SpecReason.NOT_APPROVED)


@pytest.mark.parametrize(("asked", "limit"), [(None, 8), (1, 1), (8, 8), (50, 8)])
def test_a_request_may_lower_the_number_of_draft_tokens_and_never_raise_it(asked: int | None, limit: int) -> None:
    assert decide(SpecRequest(asked), "interactive", pair(), policy()).max_draft_tokens == limit


@pytest.mark.parametrize(
    "obstacle",
    [{"same_vocabulary": False}, {"same_template": False}, {"backend_ok": False}, {"cache_trimmable": False}],
)
def test_no_approval_makes_a_pair_speculate_that_cannot(obstacle: dict[str, bool]) -> None:
    assert not decide(ORDINARY, "interactive", pair(**obstacle), policy()).active


def test_the_operators_approval_comes_before_the_built_in_deny_list_and_his_denial_before_everything() -> None:
    assert judge_pair(pair(), policy(APPROVED, DENIED)) == SpecReason.APPROVED
    assert judge_pair(pair(), policy(DENIED, APPROVED)) == SpecReason.DENIED
    both = SpecMatrix(approved=APPROVED.approved, denied=DENIED.denied)
    assert judge_pair(pair(), policy(both)) == SpecReason.DENIED


@pytest.mark.parametrize(
    ("entry", "denied"),
    [
        ({"family": "llama"}, True),
        ({"family": "LLA*"}, True),
        ({"family": "lama"}, False),
        ({"target": "org/*"}, True),
        ({"target": "ORG/Target"}, True),
        ({"target": "target"}, False),
        ({"draft": "*/draft"}, True),
        ({"family": "llama", "draft": "*/other"}, False),
        ({"family": "llama", "target": "org/*", "draft": "org/*"}, True),
    ],
)
def test_a_deny_entry_matches_only_if_all_that_it_says_does(entry: dict[str, str], denied: bool) -> None:
    matrix = SpecMatrix(denied=(DeniedPair(reason="no", **entry),), approved=APPROVED.approved)
    assert (judge_pair(pair(), policy(matrix)) == SpecReason.DENIED) is denied


def test_the_drafts_family_is_looked_up_too() -> None:
    assert judge_pair(pair(target_family="qwen3", draft_family="llama"), policy(DENIED)) == SpecReason.DENIED


@pytest.mark.parametrize(
    ("facts", "matrix", "reason"),
    [
        ({"same_vocabulary": False}, APPROVED, "tokenizer_mismatch"),
        ({"same_template": False}, APPROVED, "template_mismatch"),
        ({"backend_ok": False}, APPROVED, "unsupported_backend"),
        ({"cache_trimmable": False}, APPROVED, "cache_not_trimmable"),
        ({}, DENIED, "denied"),
        ({}, SpecMatrix(), "not_approved"),
    ],
)
def test_a_strict_configuration_refuses_a_pair_that_will_not_speculate(
    facts: dict[str, bool], matrix: SpecMatrix, reason: str
) -> None:
    strict = policy(matrix, require_supported=True)
    with pytest.raises(SpeculationUnsupported) as caught:
        judge_pair(pair(**facts), strict)

    assert isinstance(caught.value, ConfigError)
    assert (caught.value.reason, caught.value.key_path) == (reason, "speculation.require_supported")
    assert f"target {TARGET} with draft {DRAFT} cannot speculate: {reason}" in str(caught.value)
    assert str(caught.value).endswith("or set speculation.require_supported to false")
    with pytest.raises(SpeculationUnsupported):
        decide(ORDINARY, "interactive", pair(**facts), strict)


def test_the_refusal_of_a_denied_pair_says_why_and_where_to_read_more() -> None:
    with pytest.raises(SpeculationUnsupported, match=r"denied \(it diverges, https://example\.org/1\)"):
        judge_pair(pair(), policy(DENIED, require_supported=True))


def test_a_model_without_a_draft_is_refused_only_where_every_request_must_speculate() -> None:
    assert judge_pair(pair(draft=None), policy(require_supported=True)) == SpecReason.NO_DRAFT
    with pytest.raises(SpeculationUnsupported, match="set the model's draft") as caught:
        judge_pair(pair(draft=None), policy(mode="require"))
    assert caught.value.key_path == "lanes.interactive.speculation.mode"


def test_strictness_spares_the_throughput_lane_and_requests_that_decline() -> None:
    strict = policy(SpecMatrix(), require_supported=True)
    assert decide(ORDINARY, "throughput", pair(), strict).reason == SpecReason.LANE
    assert decide(SpecRequest(0), "interactive", pair(), strict).reason == SpecReason.CLIENT_OFF


def test_a_low_acceptance_ratio_is_no_configuration_error() -> None:
    strict = policy(mode="require", require_supported=True)
    assert decide(ORDINARY, "interactive", pair(low_acceptance=True), strict).reason == SpecReason.LOW_ACCEPTANCE


def test_the_embedded_pair_is_approved_as_shipped() -> None:
    embedded = PairCapability(target="embedded:target", draft="embedded:draft", target_family="llama")
    assert decide(ORDINARY, "interactive", embedded, spec_policy(load())).reason == SpecReason.APPROVED


@pytest.mark.parametrize("family", ["gemma3_text", "gemma4", "gpt_oss", "cohere2", "olmo3"])
def test_families_whose_sliding_window_cannot_be_rewound_are_denied_as_shipped(family: str) -> None:
    assert judge_pair(pair(target_family=family), spec_policy(load())) == SpecReason.DENIED


@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoehybrid", "deepseek_v3", "mixtral", "llama4_text", "olmoe"])
def test_mixtures_of_experts_are_denied_as_shipped_unless_the_operator_approves_the_pair(family: str) -> None:
    assert judge_pair(pair(target_family=family), spec_policy(load())) == SpecReason.DENIED
    assert judge_pair(pair(target_family=family), policy(APPROVED, builtin_matrix())) == SpecReason.APPROVED


def test_every_built_in_denial_says_where_it_was_reported() -> None:
    assert builtin_matrix().denied
    assert all(entry.link for entry in builtin_matrix().denied)


def test_the_configurations_own_entries_reach_the_policy() -> None:
    speculation = msgspec.structs.replace(load().speculation, approved=APPROVED.approved, require_supported=True)
    config: Config = msgspec.structs.replace(load(), speculation=speculation)
    made = spec_policy(config)
    assert made.require_supported
    assert judge_pair(pair(), made) == SpecReason.APPROVED
