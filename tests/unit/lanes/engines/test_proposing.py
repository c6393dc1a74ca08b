"""Who proposes next, and how much."""

from lanes.engines.prompt_lookup import PromptLookup
from lanes.engines.proposing import PLAIN, PairCosts, Proposing


def costs(draft_step_s=0.2, place_s=0.02, *, draft_model=True, prompt_lookup=True):
    """A plain step takes a second; each draft token a draft step, and its place in the verification."""
    made = PairCosts(8, draft_model=draft_model, prompt_lookup=prompt_lookup)
    for k in range(9):
        made.observe("draft_model", k, 1 + k * (draft_step_s + place_s))
        made.observe("prompt_lookup", k, 1 + k * place_s)
    return made


def text(copies):
    made = PromptLookup()
    made.extend([*range(40), 99], answer=False)
    made.extend(range(copies), answer=True)
    return made


def proposing(of, lookup=None, drafts=True):
    return Proposing(of, lookup, drafts=drafts, greedy=True)


def test_a_text_that_copies_proposes_by_itself():
    plan = proposing(costs(), text(30)).choose(8, drafts=True)
    assert (plan.proposer, plan.draft_tokens) == ("prompt_lookup", 8)


def test_a_text_that_copies_nothing_leaves_it_to_the_draft_model():
    plan = proposing(costs(), text(0)).choose(8, drafts=True)
    assert (plan.proposer, plan.draft_tokens) == ("draft_model", 8)


def test_a_draft_that_is_always_right_and_costs_little_beats_a_short_copy():
    choice = proposing(costs(draft_step_s=0.01), text(2))
    for _ in range(20):
        choice.observe("draft_model", 8, 8, [0.99] * 8)
    assert choice.choose(8, drafts=True).proposer == "draft_model"


def test_without_a_draft_model_the_text_proposes_or_nobody():
    alone = costs(draft_model=False)
    assert alone.proposers == ["prompt_lookup"]
    assert proposing(alone, text(30), drafts=False).choose(8, drafts=False).proposer == "prompt_lookup"
    assert proposing(alone, text(0), drafts=False).choose(8, drafts=False) == PLAIN


def test_while_the_draft_catches_up_the_text_may_propose():
    assert proposing(costs(), text(30)).choose(4, drafts=False).draft_tokens == 4
    assert proposing(costs(), text(0)).choose(4, drafts=False) == PLAIN


def test_where_verifying_costs_as_much_as_decoding_nobody_proposes():
    dear = costs(draft_step_s=0.5, place_s=1.0)
    assert proposing(dear, text(30)).choose(8, drafts=True) == PLAIN


def test_a_request_that_has_room_for_nothing_gets_nothing():
    assert proposing(costs(), text(30)).choose(0, drafts=True) == PLAIN


def test_drafting_goes_on_while_the_draft_is_sure_and_ends_when_it_is_not():
    stopping = proposing(costs()).choose(8, drafts=True).stopping
    for _ in range(5):
        stopping.drafted(0.995)
    assert stopping.worth(1)
    stopping.drafted(0.05)
    assert not stopping.worth(1)


def test_what_a_draft_says_of_itself_is_not_taken_at_its_word():
    choice = proposing(costs())
    before = choice.choose(8, drafts=True).stopping
    before.drafted(0.9)
    for _ in range(60):
        choice.observe("draft_model", 2, 1, [0.995, 0.9])
    after = choice.choose(8, drafts=True).stopping
    after.drafted(0.9)
    assert before.worth(1)
    assert not after.worth(1)
