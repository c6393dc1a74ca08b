"""Fair sharing of device seconds, for step costs that nobody knows beforehand."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes.fair_share import FairShare

FLOWS = "abcd"
weights = st.dictionaries(st.sampled_from(FLOWS), st.floats(0.1, 100), min_size=2)
costs = st.floats(0.001, 10)


class Device:
    """Gives service to whoever `FairShare` selects, and keeps the books."""

    def __init__(self, flow_weights):
        self.share = FairShare(flow_weights)
        self.served = dict.fromkeys(flow_weights, 0.0)

    def step(self, backlogged, cost):
        chosen = self.share.select(backlogged)
        if chosen is not None:
            self.share.charge(chosen, cost)
            self.served[chosen] += cost
        return chosen


class AheadDevice(Device):
    """Chooses a service while the one before is under way, and knows what that cost only after the choice."""

    def __init__(self, flow_weights):
        super().__init__(flow_weights)
        self.under_way = None

    def step(self, backlogged, cost, expected):
        chosen = self.share.select(backlogged)
        self.share.expect(chosen, expected)
        if self.under_way is not None:
            self.share.charge(*self.under_way)
        self.under_way = (chosen, cost, expected)
        return chosen


def unfairness(before, after, weight):
    """The largest difference of two flows' service over an interval, each divided by its weight, in virtual seconds."""
    given_ = {flow: (after[flow] - before[flow]) / weight[flow] for flow in after}
    return {(f, g): abs(given_[f] - given_[g]) for f, g in combinations(given_, 2)}


@given(weights, st.lists(costs, min_size=1, max_size=40))
def test_over_any_interval_shares_follow_the_weights_whatever_a_step_costs(weight, step_costs):
    device = Device(weight)
    books = [dict(device.served)]
    for cost in step_costs:
        device.step(list(weight), cost)
        books.append(dict(device.served))
    largest = max(step_costs)
    for before, after in combinations(books, 2):
        for (f, g), difference in unfairness(before, after, weight).items():
            assert difference <= largest / weight[f] + largest / weight[g] + 1e-6


@given(weights, st.lists(st.tuples(st.sets(st.sampled_from(FLOWS)), costs), max_size=60))
def test_flows_that_come_and_go_are_fair_while_together_and_bank_nothing_while_away(weight, steps):
    device = Device(weight)
    largest = max((cost for _, cost in steps), default=0)
    together = dict.fromkeys(combinations(weight, 2))  # each pair's books when both became backlogged
    for wanted, cost in steps:
        backlogged = [flow for flow in weight if flow in wanted]
        for f, g in together:
            if f not in backlogged or g not in backlogged:
                together[f, g] = None
            elif together[f, g] is None:
                together[f, g] = dict(device.served)
        chosen = device.step(backlogged, cost)
        assert (chosen in backlogged) if backlogged else (chosen is None)  # work-conserving
        for (f, g), before in together.items():
            if before is not None:
                difference = unfairness(before, device.served, weight)[f, g]
                assert difference <= largest / weight[f] + largest / weight[g] + 1e-6


@given(weights, st.lists(costs, min_size=1, max_size=40), st.data())
def test_a_flow_that_was_idle_waits_for_one_step_of_each_other_at_most(weight, step_costs, data):
    device = Device(weight)
    sleeper = data.draw(st.sampled_from(sorted(weight)))
    others = [flow for flow in weight if flow != sleeper]
    for cost in step_costs:
        device.step(others, cost)
    waited = []
    while (chosen := device.step(list(weight), 1.0)) != sleeper:
        waited.append(chosen)
        assert len(waited) <= len(others)
    assert len(set(waited)) == len(waited)


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.lists(st.tuples(costs, costs), min_size=1, max_size=40))
def test_of_two_flows_neither_waits_longer_if_steps_were_expected_to_cost_something_else(a, b, steps):
    device = AheadDevice({"a": a, "b": b})
    for cost, expected in steps:
        device.step(["a"], cost, expected)
    assert "b" in (device.step(["a", "b"], 1.0, 1.0), device.step(["a", "b"], 1.0, 1.0))


@given(weights, st.lists(costs, min_size=1, max_size=60))
def test_nobody_starves(weight, step_costs):
    device = Device(weight)
    largest = max(step_costs)
    unserved = dict.fromkeys(weight, 0.0)  # what the others were given since a flow's last turn
    for cost in step_costs:
        chosen = device.step(list(weight), cost)
        for flow in weight:
            unserved[flow] = 0.0 if flow == chosen else unserved[flow] + cost
            bound = sum(weight[g] * largest / weight[flow] + largest for g in weight if g != flow)
            assert unserved[flow] <= bound + 1e-6


@given(weights, st.lists(costs, max_size=30), st.data(), st.lists(costs, min_size=1, max_size=30))
def test_new_weights_rule_from_the_next_step_on(old, before_costs, data, after_costs):
    new = {flow: data.draw(st.floats(0.1, 100)) for flow in old}
    device = Device(old)
    for cost in before_costs:
        device.step(list(old), cost)
    for flow, weight in new.items():
        device.share.set_weight(flow, weight)
    before = dict(device.served)
    largest = max(before_costs + after_costs)
    lag = {flow: largest / min(old[flow], new[flow]) for flow in old}  # what is still owed under the old weights
    for cost in after_costs:
        device.step(list(new), cost)
        for (f, g), difference in unfairness(before, device.served, new).items():
            assert difference <= lag[f] + lag[g] + 1e-6


def test_eight_to_one_gives_eight_ninths_of_the_device_although_its_steps_are_shorter():
    device = Device({"interactive": 8, "throughput": 1})
    for _ in range(5000):
        chosen = device.share.select(["interactive", "throughput"])
        cost = 0.02 if chosen == "interactive" else 0.05
        device.share.charge(chosen, cost)
        device.served[chosen] += cost
    assert device.served["interactive"] / sum(device.served.values()) == pytest.approx(8 / 9, rel=0.005)


def test_equal_tags_go_to_the_heavier_flow_and_then_to_the_first():
    assert FairShare({"light": 1, "heavy": 2}).select(["light", "heavy"]) == "heavy"
    assert FairShare({"x": 1, "y": 1}).select(["y", "x"]) == "y"


def test_a_forgotten_flow_that_returns_starts_at_the_present():
    device = Device({"a": 1, "b": 1})
    device.step(["b"], 1.0)
    device.share.forget("b")
    for _ in range(10):
        device.step(["a"], 1.0)
    device.share.set_weight("b", 1)
    assert [device.step(["a", "b"], 1.0) for _ in range(5)] == ["b", "a", "b", "a", "b"]


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan])
def test_a_weight_that_is_no_share_is_refused_and_changes_nothing(weight):
    share = FairShare({"a": 2})
    with pytest.raises(ValueError, match="weight of 'a'"):
        share.set_weight("a", weight)
    share.select(["a"])
    share.charge("a", 1.0)
    assert share.tag("a") == 0.5
