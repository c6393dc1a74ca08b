"""Which pair is resident, and who waits: the decider alone, on a clock that the test turns."""

import itertools
import math
import random

import pytest

from lanes.pair_states import TRANSITIONS, PairEvent, PairState, after
from lanes.residency import (
    MAX_RESIDENCY_S,
    RETRY_S,
    Granted,
    Lease,
    Load,
    Need,
    PairLimits,
    Prepare,
    Refused,
    Residency,
    Unload,
)
from lanes.states import IllegalTransition

KEEP_S = 600.0


class Device:
    """A decider, and a host that does what it is told when the test says so."""

    def __init__(self, *limits, memory_bytes=100, needs=None, load_s=1.0):
        self.residency = Residency(limits or (PairLimits("a", KEEP_S), PairLimits("b", KEEP_S)))
        self.now_s = 0.0
        self.needs = needs or {}
        self.load_s = load_s
        self.orders = []
        self.granted = []
        self.refused = {}
        self.loads = []
        self.do(self.residency.host_started(memory_bytes, self.now_s))

    def do(self, effects):
        for effect in effects:
            match effect:
                case Granted(lease):
                    self.granted.append(lease)
                case Refused(lease, message):
                    self.refused[lease] = message
                case _:
                    self.orders.append(effect)
        self.residency.check_integrity()

    def ask(self, name):
        lease = Lease(name)
        self.do(self.residency.acquire(lease, self.now_s))
        return lease

    def end(self, lease):
        self.do(self.residency.release(lease, self.now_s))

    def work(self):
        """The host does everything that it was told, and what follows from it."""
        while self.orders:
            self.step()

    def step(self):
        order = self.orders.pop(0)
        match order:
            case Prepare(name):
                self.do(self.residency.prepared(name, Need(self.needs.get(name, 60)), self.now_s))
            case Load(name):
                self.loads.append(name)
                self.now_s += self.load_s
                self.do(self.residency.loaded(name, self.load_s, self.now_s))
            case Unload(name):
                self.do(self.residency.unloaded(name, self.now_s))

    def wait(self, seconds):
        """Time passes, and the decider is woken whenever it asked for it."""
        until_s = self.now_s + seconds
        while (due_s := self.residency.due_s(self.now_s)) <= until_s:
            self.now_s = due_s
            self.do(self.residency.tick(due_s))
            self.work()
        self.now_s = until_s

    def state(self, name):
        return next(view.state for view in self.residency.views() if view.name == name)

    def message(self, name):
        return next(view.message for view in self.residency.views() if view.name == name)


def test_every_state_can_be_reached_and_left_and_a_lost_host_ends_each():
    reached = {PairState.ABSENT}
    for _ in PairState:
        reached |= {after(state, event) for state in reached for event in TRANSITIONS[state]}
    assert reached == set(PairState) == TRANSITIONS.keys()
    assert {after(state, PairEvent.HOST_LOST) for state in PairState} == {PairState.ABSENT}


def test_an_event_that_cannot_happen_says_what_could():
    with pytest.raises(IllegalTransition, match="pair is absent: loaded cannot happen; possible: wanted"):
        after(PairState.ABSENT, PairEvent.LOADED)


def test_many_who_want_a_pair_wait_for_one_load():
    device = Device()
    leases = [device.ask("a") for _ in range(20)]
    assert device.orders == [Prepare("a")]
    device.work()
    assert (device.loads, device.granted) == (["a"], leases)
    assert device.ask("a") in device.granted
    assert device.orders == []


def test_an_idle_pair_is_unloaded_when_its_time_is_up_and_never_under_a_request():
    device = Device(PairLimits("a", 10.0))
    lease = device.ask("a")
    device.work()
    device.wait(100)
    assert device.state("a") is PairState.RESIDENT
    device.end(lease)
    device.wait(9)
    assert device.state("a") is PairState.RESIDENT
    device.wait(2)
    assert device.state("a") is PairState.ABSENT


def test_at_once_means_when_the_last_request_has_ended():
    device = Device(PairLimits("a", 0.0))
    one, other = device.ask("a"), device.ask("a")
    device.work()
    device.end(one)
    assert device.orders == []
    device.end(other)
    assert device.orders == [Unload("a")]


def test_the_least_recently_used_idle_pair_makes_room():
    device = Device(*(PairLimits(name, KEEP_S) for name in "abc"), needs={"a": 40, "b": 40, "c": 40})
    for name in "ab":
        lease = device.ask(name)
        device.work()
        device.end(lease)
        device.wait(60)
    device.end(device.ask("a"))
    device.ask("c")
    device.work()
    assert [device.state(name) for name in "abc"] == [PairState.RESIDENT, PairState.ABSENT, PairState.RESIDENT]


def test_a_pair_in_use_takes_nobody_new_when_its_memory_is_wanted_and_goes_when_the_last_has_ended():
    device = Device()
    running = device.ask("a")
    device.work()
    device.wait(60)
    other = device.ask("b")
    device.work()
    assert (device.state("a"), device.state("b")) == (PairState.LEAVING, PairState.WAITING)
    late = device.ask("a")
    assert late not in device.granted
    device.end(running)
    device.work()
    assert other in device.granted
    assert device.state("a") is PairState.WAITING
    device.end(other)
    device.wait(60)
    assert late in device.granted
    assert device.loads == ["a", "b", "a"]


def test_who_does_not_want_it_any_more_lets_the_others_have_it_back():
    device = Device()
    device.ask("a")
    device.work()
    device.wait(60)
    impatient = device.ask("b")
    device.work()
    late = device.ask("a")
    device.end(impatient)
    assert (device.state("a"), device.state("b")) == (PairState.RESIDENT, PairState.ABSENT)
    assert late in device.granted


@pytest.mark.parametrize(("load_s", "stays_s"), [(0.1, 1.0), (2.0, 8.0), (100.0, MAX_RESIDENCY_S)])
def test_a_pair_stays_for_a_multiple_of_what_its_load_took(load_s, stays_s):
    device = Device(load_s=load_s)
    device.end(device.ask("a"))
    device.ask("a")
    device.work()
    device.end(device.granted[-1])
    device.ask("b")
    device.work()
    device.wait(stays_s - 0.05)
    assert device.state("a") is PairState.RESIDENT
    device.wait(0.1)
    assert (device.state("a"), device.state("b")) == (PairState.ABSENT, PairState.RESIDENT)


def test_twenty_clients_in_turn_are_all_served_and_the_pairs_change_places_no_more_than_their_loads_are_worth():
    device = Device(load_s=0.5)
    asked = [device.ask(name) for name in itertools.islice(itertools.cycle("ab"), 20)]
    served = []
    for _ in range(2000):
        device.work()
        for lease in [lease for lease in device.granted if lease not in served]:
            served.append(lease)
            device.end(lease)
            if len(asked) < 200:
                asked.append(device.ask(lease.name))
        device.wait(0.05)
    assert len(served) == len(asked) == 200
    loading_s = len(device.loads) * device.load_s
    assert loading_s <= 0.25 * device.now_s + 2 * device.load_s


def test_a_pair_that_does_not_fit_is_refused_with_the_numbers_and_what_is_resident_stays():
    device = Device(needs={"b": 300})
    device.ask("a")
    device.work()
    refused = device.ask("b")
    device.work()
    assert "it needs 300 B; memory.limit allows 100 B" in device.refused[refused]
    assert (device.state("a"), device.state("b")) == (PairState.RESIDENT, PairState.FAILED)


def test_what_is_pinned_makes_no_room_and_is_named_where_it_stands_in_the_way():
    device = Device(PairLimits("a"), PairLimits("b", KEEP_S))
    device.end(device.ask("a"))
    device.ask("a")
    device.work()
    device.end(device.granted[-1])
    refused = device.ask("b")
    device.work()
    device.wait(10_000)
    assert "of which 60 B are held by a" in device.refused[refused]
    assert device.state("a") is PairState.RESIDENT


def test_a_small_pair_passes_one_that_waits_if_it_takes_nothing_from_it():
    device = Device(
        *(PairLimits(name, KEEP_S) for name in "abcd"), needs={"a": 60, "b": 60, "c": 30, "d": 20}, memory_bytes=100
    )
    device.ask("a")
    device.work()
    device.wait(60)
    for name in "bcd":
        device.ask(name)
    device.work()
    assert [device.state(name) for name in "bcd"] == [PairState.WAITING, PairState.RESIDENT, PairState.WAITING]


def test_a_pair_that_failed_is_tried_again_after_a_while_and_for_an_operator_at_once():
    device = Device()
    first = device.ask("a")
    device.do(device.residency.failed("a", "no such file", device.now_s))
    device.orders.clear()
    assert device.refused == {first: "no such file"}
    again = device.ask("a")
    assert (device.refused[again], device.orders) == ("no such file", [])
    assert device.residency.refusal("a", device.now_s) == "no such file"
    device.do(device.residency.load("a", device.now_s))
    assert device.orders == [Prepare("a")]
    device.do(device.residency.failed("a", "no such file", device.now_s))
    device.now_s += RETRY_S
    assert device.residency.refusal("a", device.now_s) is None
    assert device.ask("a") not in device.refused


def test_an_operator_unloads_a_pinned_pair_when_its_requests_have_ended_and_it_comes_back_for_the_next():
    device = Device(PairLimits("a"))
    running = device.ask("a")
    device.work()
    device.do(device.residency.unload("a", device.now_s))
    device.wait(1000)
    assert device.state("a") is PairState.LEAVING
    device.end(running)
    device.work()
    assert device.state("a") is PairState.ABSENT
    late = device.ask("a")
    device.work()
    assert late in device.granted


def test_a_load_is_given_up_by_an_operator_even_if_it_ends_meanwhile():
    device = Device(PairLimits("a"))
    device.do(device.residency.load("a", 0.0))
    device.step()
    assert device.orders == [Load("a")]
    device.do(device.residency.unload("a", 0.0))
    device.work()
    assert device.state("a") is PairState.ABSENT
    assert device.loads == ["a"]


def test_what_is_preloaded_makes_nobody_go_and_the_start_does_not_wait_for_it():
    device = Device(PairLimits("a", KEEP_S, preload=True), PairLimits("b", KEEP_S, preload=True))
    assert device.residency.starting
    device.work()
    assert not device.residency.starting
    assert (device.state("a"), device.state("b")) == (PairState.RESIDENT, PairState.ABSENT)
    assert device.message("b").startswith("not loaded at the start: it needs 60 B")


def test_who_had_a_pair_when_the_host_was_lost_has_it_again_before_the_next_one_is_ready():
    device = Device()
    running = device.ask("a")
    device.work()
    device.residency.host_lost(device.now_s)
    waiting = device.ask("b")
    assert device.orders == []
    device.do(device.residency.host_started(120, device.now_s))
    assert device.residency.starting
    device.work()
    assert not device.residency.starting
    assert (device.state("a"), device.state("b")) == (PairState.RESIDENT, PairState.RESIDENT)
    assert waiting in device.granted
    device.end(running)


def test_a_pair_in_quarantine_is_refused_and_not_preloaded_until_its_time_is_up():
    device = Device(PairLimits("a", KEEP_S, preload=True), PairLimits("b", KEEP_S, preload=True))
    device.orders.clear()
    device.residency.host_lost(device.now_s)
    waiting = device.ask("a")
    device.do(device.residency.quarantine("a", 60.0, "hosts died of it", device.now_s))
    assert device.refused == {waiting: "hosts died of it"}
    device.do(device.residency.host_started(120, device.now_s))
    device.work()
    assert (device.loads, device.residency.starting) == (["b"], False)
    late = device.ask("a")
    assert (device.refused[late], device.state("a")) == ("hosts died of it", PairState.FAILED)
    device.wait(60.0)
    assert (device.state("a"), device.message("a")) == (PairState.ABSENT, None)
    device.ask("a")
    device.work()
    assert device.state("a") is PairState.RESIDENT


def test_a_quarantine_is_kept_over_the_next_hosts_if_it_is_said_again_and_ends_for_an_operator():
    device = Device(PairLimits("a", KEEP_S, preload=True))
    for _ in range(2):
        device.orders.clear()
        device.residency.host_lost(device.now_s)
        device.do(device.residency.quarantine("a", math.inf, "hosts died of it", device.now_s))
        device.do(device.residency.host_started(120, device.now_s))
        assert device.orders == []
    device.residency.host_lost(device.now_s)
    device.do(device.residency.quarantine("a", math.inf, "hosts died of it", device.now_s))
    device.do(device.residency.forgive("a", device.now_s))
    device.do(device.residency.load("a", device.now_s))
    device.do(device.residency.host_started(120, device.now_s))
    device.work()
    assert device.state("a") is PairState.RESIDENT


def test_nothing_is_due_when_nothing_can_happen_by_itself():
    device = Device(PairLimits("a"))
    assert device.residency.due_s(0.0) == math.inf
    device.ask("a")
    device.work()
    assert device.residency.due_s(device.now_s) == math.inf


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_books_balance_and_everybody_is_answered_in_the_end(seed):
    dice = random.Random(seed)
    names = "abcd"
    device = Device(
        *(PairLimits(name, dice.choice([0.0, 5.0, KEEP_S])) for name in names),
        needs={name: dice.choice([30, 60, 90]) for name in names},
        load_s=dice.choice([0.0, 0.5, 3.0]),
    )
    held, asked = [], []
    for _ in range(300):
        match dice.randrange(7):
            case 0 | 1:
                asked.append(device.ask(dice.choice(names)))
                held.append(asked[-1])
            case 2 if held:
                device.end(held.pop(dice.randrange(len(held))))
            case 3 if device.orders:
                device.step()
            case 4:
                device.do(device.residency.load(dice.choice(names), device.now_s))
            case 5:
                device.do(device.residency.unload(dice.choice(names), device.now_s))
            case 6:
                device.now_s += dice.choice([0.1, 1.0, 20.0])
                device.do(device.residency.tick(device.now_s))
    waiting = {lease for lease in held if lease not in device.granted and lease not in device.refused}
    for lease in [lease for lease in held if lease not in waiting]:
        device.end(lease)
    for _ in range(100):
        device.work()
        for lease in waiting & set(device.granted):
            waiting.discard(lease)
            device.end(lease)
        device.wait(MAX_RESIDENCY_S)
    assert waiting == set()
