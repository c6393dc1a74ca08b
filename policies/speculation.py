"""Whether a request speculates, and why not where not. Pure.

Three things must agree: the operator (mode, approvals, deny-list), the pair (what it technically can), and the
request. Lists are read in this order, first match wins: the configuration's ``denied`` and ``approved``, then those of
``speculation.yaml``. An approval never makes a pair that cannot speculate do so. Without a draft the text itself may
propose (prompt lookup): that needs no approval, but a target that can verify and is not denied.
"""

from collections.abc import Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import msgspec

from policies.errors import SpeculationUnsupported
from policies.schema import ApprovedPair, Config, DeniedPair, LaneName, SpeculationMode
from policies.validation import decode
from policies.yaml_source import YamlSource

MATRIX_FILE = Path(__file__).with_name("speculation.yaml")


class SpecReason(StrEnum):
    """Why a request does or does not speculate. The values are public: answers, spans and dashboards carry them."""

    APPROVED = "approved"
    PROMPT_LOOKUP = "prompt_lookup"  # there is no draft, but what the text itself proposes can be verified
    REQUIRED = "required"  # not approved, but lanes.interactive.speculation.mode is require
    DENIED = "denied"
    NOT_APPROVED = "not_approved"
    NO_DRAFT = "no_draft"
    LANE = "lane"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"
    TEMPLATE_MISMATCH = "template_mismatch"
    UNSUPPORTED_BACKEND = "unsupported_backend"
    CACHE_NOT_TRIMMABLE = "cache_not_trimmable"
    LOW_ACCEPTANCE = "low_acceptance"
    CLIENT_OFF = "client_off"
    OFF = "off"


ACTIVE = frozenset({SpecReason.APPROVED, SpecReason.REQUIRED, SpecReason.PROMPT_LOOKUP})
"""The reasons of those that speculate."""

_REMEDIES: dict[SpecReason, str] = {
    SpecReason.NO_DRAFT: "set the model's draft",
    SpecReason.DENIED: "use another draft, or approve the pair under speculation.approved with your evidence",
    SpecReason.NOT_APPROVED: "measure it with opta-router bench matrix --try, and approve it with bench gate --approve",
    SpecReason.TOKENIZER_MISMATCH: "use a draft with the target's own vocabulary",
    SpecReason.TEMPLATE_MISMATCH: "use a draft with the target's own chat template and special tokens",
    SpecReason.UNSUPPORTED_BACKEND: "run it where `opta-router probe` says that speculation works",
    SpecReason.CACHE_NOT_TRIMMABLE: "use a model whose whole cache can be rewound, or leave out its draft",
}


class PairCapability(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a target and its draft, as the host found them when it loaded both.

    ``target`` and ``draft`` are named as in the configuration; the families are the models' ``model_type``.
    ``low_acceptance`` is the verdict of the acceptance window, which its keeper renews.
    """

    target: str
    draft: str | None = None
    target_family: str = ""
    draft_family: str = ""
    same_vocabulary: bool = True
    same_template: bool = True
    cache_trimmable: bool = True
    backend_ok: bool = True
    low_acceptance: bool = False


class SpecRequest(msgspec.Struct, frozen=True):
    """What the request says: ``num_draft_tokens`` 0 switches speculation off, more is an upper bound."""

    num_draft_tokens: int | None = None


class SpecDecision(msgspec.Struct, frozen=True):
    """``requested``: somebody wanted speculation here. ``max_draft_tokens`` (a round) is 0 unless ``active``."""

    requested: bool
    active: bool
    reason: SpecReason
    max_draft_tokens: int = 0


class SpecMatrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which pairs may speculate, and which must not."""

    approved: tuple[ApprovedPair, ...] = ()
    denied: tuple[DeniedPair, ...] = ()


class SpecPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's side. ``matrices`` come in order of precedence; in each, ``denied`` before ``approved``."""

    mode: SpeculationMode = "auto"
    max_draft_tokens: int = 8
    prompt_lookup: bool = False
    require_supported: bool = False
    matrices: tuple[SpecMatrix, ...] = ()


@cache
def builtin_matrix() -> SpecMatrix:
    """The shipped approvals and deny-list."""
    return read_matrix(MATRIX_FILE)


def read_matrix(file: Path) -> SpecMatrix:
    """The approvals and denials in a file. Raises :class:`ConfigError`."""
    source = YamlSource(file)
    return decode(source.data, SpecMatrix, source)


def approval_of(pair: PairCapability, policy: SpecPolicy) -> ApprovedPair | None:
    """The entry that approves a pair, with its evidence; None if none does."""
    listed = _listed(pair, policy.matrices)
    return listed if isinstance(listed, ApprovedPair) else None


def spec_policy(config: Config) -> SpecPolicy:
    """The policy in a configuration, with the built-in matrix behind its own."""
    lane = config.lanes.interactive.speculation
    own = SpecMatrix(approved=config.speculation.approved, denied=config.speculation.denied)
    return SpecPolicy(
        mode=lane.mode,
        max_draft_tokens=lane.max_draft_tokens,
        prompt_lookup=lane.prompt_lookup,
        require_supported=config.speculation.require_supported,
        matrices=(own, builtin_matrix()),
    )


def decide(request: SpecRequest, lane: LaneName, pair: PairCapability, policy: SpecPolicy) -> SpecDecision:
    """Whether this request speculates.

    Raises :class:`SpeculationUnsupported` where :func:`judge_pair` does; a host that judged the pair when it loaded
    it never sees that here.
    """
    asked = request.num_draft_tokens
    proposes = pair.draft is not None or policy.prompt_lookup
    wanted = lane == "interactive" and policy.mode != "off" and proposes
    requested = asked > 0 if asked is not None else wanted
    if asked == 0:
        return SpecDecision(requested, False, SpecReason.CLIENT_OFF)
    if lane != "interactive":
        return SpecDecision(requested, False, SpecReason.LANE)
    reason = judge_pair(pair, policy)
    if reason not in ACTIVE:
        return SpecDecision(requested, False, reason)
    if pair.low_acceptance:
        return SpecDecision(requested, False, SpecReason.LOW_ACCEPTANCE)
    limit = policy.max_draft_tokens if asked is None else min(asked, policy.max_draft_tokens)
    return SpecDecision(requested, True, reason, limit)


def judge_pair(pair: PairCapability, policy: SpecPolicy) -> SpecReason:
    """The verdict on a pair, whatever the request: it speculates if the reason is one of :data:`ACTIVE`.

    Raises :class:`SpeculationUnsupported` for a pair that does not, if the mode is ``require`` or
    ``speculation.require_supported`` is set; a model without a draft is refused by ``require`` only.
    """
    if policy.mode == "off":
        return SpecReason.OFF
    reason, detail = _verdict(pair, policy)
    if reason in ACTIVE:
        return reason
    if policy.mode == "require":
        key_path = "lanes.interactive.speculation.mode"
    elif policy.require_supported and reason is not SpecReason.NO_DRAFT:
        key_path = "speculation.require_supported"
    else:
        return reason
    names = f"target {pair.target} with draft {pair.draft}" if pair.draft else f"model {pair.target}"
    problem = (
        f"{names} cannot speculate: {reason}{detail}; {_REMEDIES[reason]}, or set {key_path} to {_lenient(key_path)}"
    )
    raise SpeculationUnsupported(problem, reason=reason, key_path=key_path)


def _lenient(key_path: str) -> str:
    return "auto" if key_path.endswith("mode") else "false"


def _verdict(pair: PairCapability, policy: SpecPolicy) -> tuple[SpecReason, str]:
    """The reason, and for the deny-list what it says."""
    listed = _listed(pair, policy.matrices)
    if pair.draft is None:
        alone = policy.prompt_lookup and not isinstance(listed, DeniedPair) and pair.backend_ok and pair.cache_trimmable
        return (SpecReason.PROMPT_LOOKUP if alone else SpecReason.NO_DRAFT), ""
    if isinstance(listed, DeniedPair):
        link = f", {listed.link}" if listed.link else ""
        return SpecReason.DENIED, f" ({listed.reason}{link})"
    obstacle = next((reason for reason, holds in _obstacles(pair) if holds), None)
    if obstacle is not None:
        return obstacle, ""
    if listed is not None:
        return SpecReason.APPROVED, ""
    return (SpecReason.REQUIRED if policy.mode == "require" else SpecReason.NOT_APPROVED), ""


def _obstacles(pair: PairCapability) -> Iterable[tuple[SpecReason, bool]]:
    """What keeps a pair from speculating correctly, whatever anyone approves."""
    return (
        (SpecReason.UNSUPPORTED_BACKEND, not pair.backend_ok),
        (SpecReason.TOKENIZER_MISMATCH, not pair.same_vocabulary),
        (SpecReason.TEMPLATE_MISMATCH, not pair.same_template),
        (SpecReason.CACHE_NOT_TRIMMABLE, not pair.cache_trimmable),
    )


def _listed(pair: PairCapability, matrices: Iterable[SpecMatrix]) -> ApprovedPair | DeniedPair | None:
    for matrix in matrices:
        for denied in matrix.denied:
            if _is_denied(pair, denied):
                return denied
        for approved in matrix.approved:
            if (approved.target, approved.draft) == (pair.target, pair.draft):
                return approved
    return None


def _is_denied(pair: PairCapability, entry: DeniedPair) -> bool:
    """Patterns, without regard to case; what an entry leaves out matches, what it says must."""
    families = (pair.target_family.lower(), pair.draft_family.lower())
    return (
        (entry.family is None or any(fnmatchcase(family, entry.family.lower()) for family in families))
        and (entry.target is None or fnmatchcase(pair.target.lower(), entry.target.lower()))
        and (entry.draft is None or fnmatchcase((pair.draft or "").lower(), entry.draft.lower()))
    )
