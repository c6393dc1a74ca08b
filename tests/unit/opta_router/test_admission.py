"""Slots, queues and fairness, decided on a clock that the test turns by hand."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from opta_router.admission import MoveGranted, Rejected
from opta_router.drain_rate import MAX_RETRY_S, MIN_RETRY_S, UNMEASURED_RETRY_S
from opta_router.lane_queue import LaneLimits
from opta_router.tickets import Ask, TicketState
from policies.auto import AutoFacts
from tests.unit.opta_router.door import Door

LANES = ("interactive", "throughput")


# the life of a ticket


def test_a_free_slot_is_granted_at_once_and_the_next_request_waits_for_it():
    door = Door()
    first, second = door.offer(), door.offer()
    assert (first.state, second.state) == (TicketState.GRANTED, TicketState.QUEUED)
    door.admission.confirm(first)
    door.release(first)
    assert (first.state, second.state) == (TicketState.OVER, TicketState.GRANTED)


def test_a_grant_that_nobody_takes_goes_to_the_next_in_the_queue():
    door = Door()
    left, next_one = door.offer(), door.offer()
    door.withdraw(left)
    assert [effect.ticket for effect in door.granted] == [left, next_one]
    assert door.stats().active == 1


def test_a_slot_in_use_cannot_be_withdrawn_and_not_released_twice():
    door = Door()
    ticket, waiting = door.confirmed(), door.offer()
    door.withdraw(ticket)
    assert (ticket.state, waiting.state) == (TicketState.ACTIVE, TicketState.QUEUED)
    door.release(ticket)
    with pytest.raises(ValueError, match="is not active"):
        door.release(ticket)
    door.withdraw(ticket)
    assert door.stats().active == 1  # the waiting one's


@pytest.mark.parametrize("confirmed_before", [True, False], ids=["taken", "never granted"])
def test_only_a_grant_can_be_confirmed_and_only_once(confirmed_before):
    door = Door()
    ticket = door.confirmed()
    other = ticket if confirmed_before else door.offer()
    state = other.state
    with pytest.raises(ValueError, match="is not granted"):
        door.admission.confirm(other)
    assert other.state is state


def test_whoever_leaves_the_queue_gives_the_place_back():
    door = Door(interactive=(1, 1, 30.0, None))
    door.confirmed()
    waiting = door.offer()
    assert door.offer().state is TicketState.OVER
    door.withdraw(waiting)
    assert door.offer().state is TicketState.QUEUED


# bounds


def test_a_full_queue_turns_the_newcomer_away_and_says_when_to_come_back():
    door = Door(interactive=(1, 2, 30.0, None))
    for _ in range(3):
        door.offer()
    ticket = door.offer()
    assert door.rejected == [Rejected(ticket, "queue_full", UNMEASURED_RETRY_S)]
    assert door.stats().rejected == {"queue_full": 1}


def test_a_lane_without_a_queue_takes_what_can_run_at_once_and_nothing_else():
    door = Door(interactive=(1, 0, 30.0, None))
    running = door.confirmed("a")
    assert door.offer("b").state is TicketState.OVER
    door.release(running)
    assert door.offer("b").state is TicketState.GRANTED


def test_a_client_at_its_own_bound_waits_and_others_pass_it():
    door = Door(throughput=(3, 8, 60.0, None))
    bounded = {"lane": "throughput", "client_max_active": 1}
    first, second, other = door.offer("a", **bounded), door.offer("a", **bounded), door.offer("b", lane="throughput")
    assert [first.state, second.state, other.state] == ["granted", "queued", "granted"]
    door.withdraw(first)
    assert second.state is TicketState.GRANTED


def test_a_clients_bound_holds_over_both_lanes_and_a_slot_freed_in_one_lets_it_into_the_other():
    door = Door()
    first = door.confirmed("a", client_max_active=1)
    second = door.offer("a", lane="throughput", client_max_active=1)
    assert second.state is TicketState.QUEUED
    door.release(first)
    assert second.state is TicketState.GRANTED


def test_a_queue_full_of_a_client_at_its_bound_does_not_keep_another_from_a_free_slot():
    door = Door(throughput=(2, 1, 60.0, None))
    for _ in range(2):
        door.offer("a", lane="throughput", client_max_active=1)
    assert door.offer("b", lane="throughput").state is TicketState.GRANTED


def test_time_in_the_queue_is_bounded_by_the_lane_and_time_in_the_slot_is_not():
    door = Door(interactive=(1, 4, 30.0, None))
    running, waiting = door.confirmed(), door.offer()
    door.now_s += 29.9
    door.perform(door.admission.expire(door.now_s))
    assert waiting.state is TicketState.QUEUED
    door.now_s += 0.1
    door.perform(door.admission.expire(door.now_s))
    assert (running.state, waiting.state) == (TicketState.ACTIVE, TicketState.OVER)
    assert [effect.code for effect in door.rejected] == ["deadline"]


def test_draining_turns_away_who_waits_and_who_comes_and_lets_the_running_end():
    door = Door()
    running, waiting = door.confirmed(), door.offer()
    door.perform(door.admission.drain())
    newcomer = door.offer(lane="throughput")
    assert (running.state, waiting.state, newcomer.state) == (TicketState.ACTIVE, TicketState.OVER, TicketState.OVER)
    assert [effect.code for effect in door.rejected] == ["draining", "draining"]
    door.release(running)
    assert door.stats().active == 0


def test_more_slots_are_filled_when_they_are_configured_and_fewer_take_nothing_back():
    door = Door()
    tickets = [door.offer() for _ in range(4)]
    door.perform(door.admission.configure({"interactive": LaneLimits(3, 4, 30.0)}, door.now_s))
    assert Counter(ticket.state for ticket in tickets) == {"granted": 3, "queued": 1}
    door.perform(door.admission.configure({"interactive": LaneLimits(1, 0, 30.0)}, door.now_s))
    door.withdraw(tickets[0])
    assert Counter(ticket.state for ticket in tickets) == {"granted": 2, "queued": 1, "over": 1}


def test_whoever_waits_is_held_to_the_time_that_was_in_force_when_it_came():
    door = Door(interactive=(1, 4, 30.0, None))
    door.confirmed()
    before = door.offer()
    door.perform(door.admission.configure({"interactive": LaneLimits(1, 4, 5.0)}, door.now_s))
    after = door.offer()
    door.now_s += 10
    door.perform(door.admission.expire(door.now_s))
    assert (before.state, after.state) == (TicketState.QUEUED, TicketState.OVER)


# which lane


@pytest.mark.parametrize(
    ("running", "lane", "route"), [(0, "interactive", "auto:room"), (1, "throughput", "auto:busy")]
)
def test_auto_takes_the_interactive_lane_only_while_the_request_would_run_at_once(running, lane, route):
    door = Door()
    for _ in range(running):
        door.confirmed()
    ticket = door.offer(lane="auto")
    assert (ticket.lane, ticket.route, ticket.state) == (lane, route, TicketState.GRANTED)


def test_a_client_that_waits_at_its_own_bound_does_not_make_the_lane_look_busy_to_others():
    door = Door(interactive=(2, 4, 30.0, None))
    for _ in range(2):
        door.offer("a", client_max_active=1)
    assert door.offer("a", lane="auto", client_max_active=1).route == "auto:busy"
    assert door.offer("b", lane="auto").route == "auto:room"


def test_what_a_full_queue_cannot_take_spills_and_the_route_says_so():
    door = Door(interactive=(1, 0, 30.0, "throughput"))
    asked = door.confirmed()
    spilled = door.offer()
    assert (asked.route, asked.lane) == ("default", "interactive")
    assert (spilled.route, spilled.lane, spilled.state) == ("spill", "throughput", TicketState.GRANTED)
    assert (door.stats().spilled, door.stats("throughput").spilled) == (1, 0)


def test_when_both_lanes_are_full_the_lane_that_was_asked_for_refuses():
    door = Door(interactive=(1, 0, 30.0, "throughput"), throughput=(1, 0, 60.0, "interactive"))
    door.confirmed()
    door.confirmed(lane="throughput")
    door.offer()
    assert (door.rejected[0].ticket.lane, door.stats().rejected, door.stats().spilled) == (
        "interactive",
        {"queue_full": 1},
        0,
    )


# fairness


def test_clients_that_keep_waiting_share_the_slots_by_their_weights():
    door = Door(interactive=(1, 100, 30.0, None))
    door.confirmed("first")
    first = door.granted[0].ticket
    for _ in range(45):
        door.offer("light", client_weight=1)
        door.offer("heavy", client_weight=3)
    door.release(first)
    served = Counter(ask.client for ask in door.serve(40))
    assert abs(served["heavy"] - 30) <= 1, served


def test_a_flood_from_one_client_does_not_lock_another_out():
    door = Door(interactive=(1, 8, 30.0, None))
    running = door.confirmed("flood")
    flood = [door.offer("flood") for _ in range(50)]
    person = door.offer("person")
    assert person.state is TicketState.QUEUED
    assert (flood[6].state, flood[7].state) == (TicketState.QUEUED, TicketState.OVER), "the last one made room"
    door.release(running)
    assert "person" in [ask.client for ask in door.serve(2)]


def test_a_client_with_its_part_of_the_queue_displaces_nobody():
    door = Door(interactive=(1, 4, 30.0, None))
    door.confirmed("a")
    waiting = [door.offer(client) for client in ("a", "b", "a", "b")]
    assert door.offer("b").state is TicketState.OVER
    assert {ticket.state for ticket in waiting} == {TicketState.QUEUED}


def test_clients_with_equal_parts_do_not_displace_each_other():
    door = Door(interactive=(1, 3, 30.0, None))
    door.confirmed("a")
    waiting = [door.offer(client) for client in ("a", "b", "c")]
    assert door.offer("d").state is TicketState.OVER
    assert {ticket.state for ticket in waiting} == {TicketState.QUEUED}


def test_made_up_sub_clients_share_their_clients_one_part():
    door = Door(interactive=(1, 100, 30.0, None))
    running = door.confirmed("other")
    for number in range(40):
        door.offer("many", sub_client=f"agent-{number}")
    for _ in range(10):
        door.offer("one")
    door.release(running)
    served = Counter(ask.client for ask in door.serve(20))
    assert abs(served["one"] - 10) <= 1, served


def test_a_sub_client_is_not_kept_waiting_behind_all_of_anothers():
    door = Door(interactive=(1, 100, 30.0, None))
    running = door.confirmed()
    for _ in range(40):
        door.offer(sub_client="flood")
    door.offer(sub_client="person")
    door.release(running)
    assert "person" in [ask.sub_client for ask in door.serve(2)]


def test_ten_thousand_client_and_sub_client_names_leave_no_memory_behind():
    door = Door()
    for number in range(10_000):
        door.release(door.confirmed(f"client-{number % 1000}", sub_client=f"agent-{number}"))
    queue = door.admission._lanes["interactive"]
    assert (len(queue.clients), len(queue._resting), len(queue.flows._idle)) == (0, 256, 256)
    assert all(len(client.flows._idle) <= 256 for client in queue._resting.values())


# when to come back


@pytest.mark.parametrize(
    ("each_s", "waiting", "expected_s"),
    [(1.9, 5, 12), (0.001, 5, MIN_RETRY_S), (100.0, 5, MAX_RETRY_S)],
)
def test_retry_after_is_the_time_in_which_a_busy_lane_has_given_that_many_slots_back(each_s, waiting, expected_s):
    door = Door(interactive=(1, waiting, 1e6, None))
    for _ in range(20):
        door.offer()
        door.offer()
        door.serve(2, each_s)
    for _ in range(waiting + 1):
        door.offer()
    door.offer()
    assert door.rejected[-1].retry_after_s == expected_s


@pytest.mark.parametrize("running", [8, 2], ids=["a full lane", "a lane that was never full"])
def test_slots_that_are_given_back_together_all_count(running):
    door = Door(throughput=(8, 100, 300.0, None))
    for _ in range(3):
        held = [door.confirmed(lane="throughput") for _ in range(running)]
        door.now_s += 10.0
        for ticket in held:
            door.release(ticket)
    for _ in range(8):
        door.confirmed(lane="throughput")
    assert door.offer(lane="throughput", timeout_s=1.0).state is TicketState.OVER
    assert door.offer(lane="throughput", timeout_s=2.0).state is TicketState.QUEUED


def test_an_idle_hour_does_not_make_a_lane_look_slow():
    door = Door(interactive=(1, 1, 1e6, None))
    for _ in range(5):
        door.offer()
        door.serve(1, each_s=1.0)
        door.now_s += 3600
    for _ in range(3):
        door.offer()
    assert door.rejected[-1].retry_after_s <= 2


# moving to the other lane


def test_whoever_moves_keeps_its_slot_until_it_has_arrived():
    door = Door()
    ticket = door.confirmed()
    door.move(ticket)
    assert [(move.ticket, move.lane) for move in door.moves] == [(ticket, "throughput")]
    assert (door.stats().active, door.stats("throughput").active) == (1, 1)
    door.moved(ticket)
    assert (ticket.lane, door.stats().active, door.stats("throughput").active) == ("throughput", 0, 1)
    assert (door.stats().demoted, door.stats("throughput").demoted) == (1, 0)
    door.release(ticket)
    assert door.stats("throughput").active == 0


def test_whoever_moves_waits_for_a_slot_before_all_that_are_queued():
    door = Door()
    running = [door.confirmed(lane="throughput") for _ in range(2)]
    queued = door.offer(lane="throughput")
    ticket = door.confirmed()
    door.move(ticket)
    assert door.moves == []
    door.release(running[0])
    assert [move.ticket for move in door.moves] == [ticket]
    assert queued.state is TicketState.QUEUED
    door.moved(ticket)
    door.release(ticket)
    assert queued.state is TicketState.GRANTED


def test_the_slot_that_a_move_frees_goes_to_the_next_in_the_queue():
    door = Door()
    ticket = door.confirmed()
    waiting = door.offer()
    door.move(ticket)
    assert waiting.state is TicketState.QUEUED
    door.moved(ticket)
    assert waiting.state is TicketState.GRANTED


def test_whoever_could_not_move_gives_the_second_slot_back():
    door = Door()
    ticket = door.confirmed()
    door.move(ticket)
    door.moved(ticket, "interactive")
    assert (ticket.lane, door.stats().active, door.stats("throughput").active) == ("interactive", 1, 0)
    assert door.stats().demoted == 0


@pytest.mark.parametrize("full", [False, True], ids=["in two lanes", "waiting to move"])
def test_whoever_ends_while_it_moves_gives_everything_back(full):
    door = Door()
    others = [door.confirmed(lane="throughput") for _ in range(2 if full else 0)]
    ticket = door.confirmed()
    door.move(ticket)
    door.release(ticket)
    for other in others:
        door.release(other)
    assert (door.stats().active, door.stats("throughput").active) == (0, 0)
    with pytest.raises(ValueError, match="no granted move"):
        door.moved(ticket)


def test_a_client_at_its_bound_may_move_for_it_is_one_request_still():
    door = Door()
    ticket = door.confirmed("bounded", client_max_active=1)
    door.move(ticket)
    assert len(door.moves) == 1
    door.moved(ticket)
    another = door.offer("bounded", client_max_active=1)
    assert another.state is TicketState.QUEUED
    door.release(ticket)
    assert another.state is TicketState.GRANTED


@pytest.mark.parametrize("lane", ["interactive", "throughput"])
def test_only_a_running_request_moves_once_and_to_another_lane(lane):
    door = Door(interactive=(2, 4, 30.0, None))
    granted = door.offer()
    with pytest.raises(ValueError, match="is not active"):
        door.move(granted)
    ticket = door.confirmed()
    if lane == "throughput":
        door.move(ticket)
    with pytest.raises(ValueError, match="cannot move"):
        door.move(ticket, lane)


# everything together

TAKEN = (TicketState.GRANTED, TicketState.ACTIVE)
CLIENTS = {"": (1.0, None), "bounded": (1.0, 1), "heavy": (4.0, 3)}


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens, in any order: bounds hold, nobody is told twice, no slot idles that somebody may have."""

    def __init__(self):
        super().__init__()
        self.door = Door(interactive=(1, 2, 10.0, "throughput"), throughput=(3, 4, 20.0, None))
        self.tickets = []
        self.in_two_lanes = []
        self.told = Counter()
        self.has_moved = Counter()
        self.before = dict.fromkeys(LANES, (0, 0))

    def perform(self, effects):
        for effect in effects:
            kind = type(effect).__name__
            self.told[id(effect.ticket), kind] += 1
            if isinstance(effect, Rejected):
                assert effect.ticket.state is TicketState.OVER
                assert MIN_RETRY_S <= effect.retry_after_s <= MAX_RETRY_S
            elif isinstance(effect, MoveGranted):
                assert effect.ticket.state is TicketState.ACTIVE
                assert effect.ticket.moving_to == effect.lane != effect.ticket.lane
                self.in_two_lanes.append(effect.ticket)
            else:
                assert effect.ticket.state is TicketState.GRANTED
        assert not self.told or max(self.told.values()) == 1, "told twice"

    def some(self, data, state):
        return data.draw(st.sampled_from([ticket for ticket in self.tickets if ticket.state is state]))

    def any_in(self, state):
        return any(ticket.state is state for ticket in self.tickets)

    @rule(
        lane=st.sampled_from(["interactive", "throughput", "auto"]),
        client=st.sampled_from(sorted(CLIENTS)),
        sub_client=st.sampled_from(["", "x"]),
        timeout_s=st.sampled_from([None, 0.01, 3.0, 1000.0]),
    )
    def offer(self, lane, client, sub_client, timeout_s):
        weight, bound = CLIENTS[client]
        ask = Ask(
            lane=lane,
            route="default",
            client=client,
            sub_client=sub_client,
            client_weight=weight,
            client_max_active=bound,
            timeout_s=timeout_s,
        )
        held = sum(t.ask.client == client and t.state in TAKEN for t in self.tickets)
        room = {name: stats.active < stats.max_active for name, stats in self.door.admission.stats().items()}
        ticket, effects = self.door.admission.offer(ask, self.door.now_s)
        if room[ticket.lane] and (bound is None or held < bound) and not self.door.admission.draining:
            assert ticket.state is TicketState.GRANTED, "what lacks nothing is never told to wait, or to go"
        self.tickets.append(ticket)
        self.perform(effects)

    @precondition(lambda self: self.any_in(TicketState.GRANTED))
    @rule(data=st.data())
    def confirm(self, data):
        self.door.admission.confirm(self.some(data, TicketState.GRANTED))

    @precondition(lambda self: self.any_in(TicketState.ACTIVE))
    @rule(data=st.data())
    def release(self, data):
        ticket = self.some(data, TicketState.ACTIVE)
        self.in_two_lanes = [other for other in self.in_two_lanes if other is not ticket]
        self.perform(self.door.admission.release(ticket, self.door.now_s))

    def still(self):
        return [t for t in self.tickets if t.state is TicketState.ACTIVE and not self.has_moved[t]]

    @precondition(lambda self: self.still())
    @rule(data=st.data())
    def move(self, data):
        ticket = data.draw(st.sampled_from(self.still()))
        lane = "throughput" if ticket.lane == "interactive" else "interactive"
        self.has_moved[ticket] += 1
        self.perform(self.door.admission.move(ticket, lane, self.door.now_s))

    @precondition(lambda self: self.in_two_lanes)
    @rule(data=st.data(), stays=st.booleans())
    def moved(self, data, stays):
        ticket = data.draw(st.sampled_from(self.in_two_lanes))
        lane = ticket.lane if stays else ticket.moving_to
        self.in_two_lanes.remove(ticket)
        self.perform(self.door.admission.moved(ticket, lane, self.door.now_s))
        assert (ticket.lane, ticket.moving_to) == (lane, None)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def withdraw(self, data):
        ticket = data.draw(st.sampled_from(self.tickets))
        was = ticket.state
        self.perform(self.door.admission.withdraw(ticket, self.door.now_s))
        assert ticket.state is (TicketState.ACTIVE if was is TicketState.ACTIVE else TicketState.OVER)

    @rule(elapsed_s=st.sampled_from([0.1, 5.0, 3600.0]))
    def time_passes(self, elapsed_s):
        self.door.now_s += elapsed_s
        self.perform(self.door.admission.expire(self.door.now_s))
        assert all(t.deadline_s > self.door.now_s for t in self.tickets if t.state is TicketState.QUEUED)

    @rule(lane=st.sampled_from(LANES), slots=st.integers(1, 4), places=st.integers(0, 4))
    def other_bounds(self, lane, slots, places):
        limits = LaneLimits(slots, places, 10.0, "throughput" if lane == "interactive" else None)
        self.perform(self.door.admission.configure({lane: limits}, self.door.now_s))

    @precondition(lambda self: len(self.tickets) > 20)
    @rule()
    def drain(self):
        self.perform(self.door.admission.drain())
        assert not self.any_in(TicketState.QUEUED)

    @invariant()
    def bounds_hold_and_no_slot_idles(self):
        self.door.admission.check_integrity()
        stats = self.door.admission.stats()
        taken = [t for t in self.tickets if t.state in TAKEN]
        of_client = Counter(ticket.ask.client for ticket in taken)
        assert all(bound is None or of_client[name] <= bound for name, (_, bound) in CLIENTS.items())
        for lane in LANES:
            waiting = [t for t in self.tickets if t.state is TicketState.QUEUED and t.lane == lane]
            coming = sum(ticket.moving_to == lane for ticket in self.in_two_lanes)
            assert stats[lane].active == sum(ticket.lane == lane for ticket in taken) + coming
            assert stats[lane].queued == len(waiting)
            # What was there before a bound became smaller stays; nothing is added to it.
            active, queued = self.before[lane]
            assert stats[lane].active <= max(stats[lane].max_active, active)
            assert stats[lane].queued <= max(stats[lane].max_queue, queued)
            self.before[lane] = (stats[lane].active, stats[lane].queued)
            if stats[lane].active < stats[lane].max_active:
                bounds = {ticket.ask.client: ticket.ask.client_max_active for ticket in waiting}
                assert all(bound is not None and of_client[name] >= bound for name, bound in bounds.items())
                assert coming == sum(ticket.moving_to == lane for ticket in taken)

    def teardown(self):
        """When all that was granted has been released, nothing is held and nobody waits."""
        while taken := [t for t in self.tickets if t.state is not TicketState.OVER]:
            give_back = (
                self.door.admission.release if taken[0].state is TicketState.ACTIVE else self.door.admission.withdraw
            )
            self.perform(give_back(taken[0], self.door.now_s))
        self.door.admission.check_integrity()
        assert [(s.active, s.queued) for s in self.door.admission.stats().values()] == [(0, 0), (0, 0)]


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=60)


def a_lane_that_gives_back_a_slot_every(seconds, waiting=6):
    """A door with one interactive slot, taken, whose last five holders kept it for so long each."""
    door = Door(interactive=(1, 100, 300.0, None))
    holder = door.confirmed("flood")
    for _ in range(5 + waiting):
        door.offer("flood")
    for _ in range(5):
        door.now_s += seconds
        door.release(holder)
        holder = door.granted[-1].ticket
        door.admission.confirm(holder)
    return door


def test_a_client_that_will_not_wait_so_long_leaves_the_queue_when_it_said():
    door = Door()
    door.confirmed("one")
    door.offer("two", timeout_s=3.0)
    door.now_s += 2.9
    door.perform(door.admission.expire(door.now_s))
    assert door.rejected == []
    door.now_s += 0.2
    door.perform(door.admission.expire(door.now_s))
    assert [rejected.code for rejected in door.rejected] == ["deadline"]


def test_a_client_cannot_wait_for_longer_than_the_lane_allows():
    door = Door()
    door.confirmed("one")
    assert door.offer("two", timeout_s=10_000.0).deadline_s == door.now_s + 30.0


def test_who_would_wait_in_vain_is_told_at_once_and_when_to_come_back():
    door = a_lane_that_gives_back_a_slot_every(10.0)
    ticket = door.offer("flood", timeout_s=30.0)
    assert ticket.state is TicketState.OVER
    (rejected,) = door.rejected
    assert rejected.code == "deadline"
    assert rejected.retry_after_s == MAX_RETRY_S
    assert door.offer("flood", timeout_s=100.0).state is TicketState.QUEUED


def test_with_twice_the_slots_a_client_is_told_to_wait_for_half_the_time():
    door = a_lane_that_gives_back_a_slot_every(10)
    before_s = door.admission._lanes["interactive"].rate.wait_s(6)
    door.perform(door.admission.configure({"interactive": LaneLimits(2, 100, 300.0)}, door.now_s))
    assert door.admission._lanes["interactive"].rate.wait_s(6) == pytest.approx(before_s / 2)


def test_somebody_elses_queue_is_not_counted_against_a_client_with_none():
    door = a_lane_that_gives_back_a_slot_every(10.0)
    assert door.offer("other", timeout_s=30.0).state is TicketState.QUEUED
    assert door.offer("other", timeout_s=30.0).state is TicketState.OVER


def test_before_anything_was_measured_nobody_is_sent_away_for_a_guess():
    door = Door()
    door.confirmed("one")
    assert door.offer("two", timeout_s=0.001).state is TicketState.QUEUED


def test_where_a_slot_is_free_no_deadline_is_too_short():
    door = a_lane_that_gives_back_a_slot_every(10.0, waiting=0)
    door.release(door.granted[-1].ticket)
    assert door.offer("other", timeout_s=0.001).state is TicketState.GRANTED


@pytest.mark.parametrize(
    ("facts", "lane", "route"),
    [
        ({}, "interactive", "auto:room"),
        ({"stream": False}, "throughput", "auto:not_streaming"),
        ({"prompt_tokens": 10_000}, "throughput", "auto:long_prompt"),
    ],
)
def test_auto_looks_at_the_request_and_at_both_lanes(facts, lane, route):
    door = Door()
    door.confirmed(lane="throughput")
    ticket = door.offer(lane="auto", auto=AutoFacts(**facts))
    assert (ticket.lane, ticket.route) == (lane, route)


def test_a_request_for_a_full_throughput_lane_is_served_by_an_idle_interactive_one():
    door = Door(throughput=(1, 0, 60.0, None))
    door.confirmed(lane="throughput")
    ticket = door.offer(lane="auto", auto=AutoFacts(prompt_tokens=10_000))
    assert (ticket.lane, ticket.route, ticket.state) == ("interactive", "auto:room", TicketState.GRANTED)


def test_auto_does_not_send_to_wait_in_vain_who_could_run_now():
    door = Door(throughput=(1, 100, 300.0, None))
    holder = door.confirmed("flood", lane="throughput")
    for _ in range(8):
        door.offer("flood", lane="throughput")
    for _ in range(4):
        door.now_s += 10
        door.release(holder)
        holder = door.granted[-1].ticket
        door.admission.confirm(holder)
    agent = AutoFacts(stream=False, tools=True)
    assert door.offer("agent", lane="auto", auto=agent).route == "auto:tools"
    assert door.offer("hurry", lane="auto", auto=agent, timeout_s=5.0).route == "auto:room"


def test_who_moves_is_counted_before_the_queue_in_what_a_newcomer_is_told():
    door = Door(interactive=(2, 4, 30.0, None), throughput=(1, 4, 60.0, None))
    door.confirmed(lane="throughput")
    ticket = door.confirmed()
    ask = Ask(lane="throughput", route="default")
    before = door.admission._lanes["throughput"].turns_until(ask)
    door.move(ticket)
    assert door.admission._lanes["throughput"].turns_until(ask) == before + 1
