"""Clients with a bound of their own: when their turn comes, who is told at once that it does not, and fairness."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opta_router.client_slots import MAX_IDLE_CLIENTS
from opta_router.drain_rate import MAX_RETRY_S
from opta_router.lane_queue import LaneLimits
from opta_router.tickets import TicketState
from policies.auto import AutoFacts
from tests.unit.opta_router.door import Door

ROOMY = (8, 100, 300.0, None)


def a_client_that_gives_back_a_slot_every(seconds, *, lane="throughput", waiting=0):
    """A door with room in both lanes; client "a" holds its one slot, and its last five were held for so long."""
    door = Door(interactive=ROOMY, throughput=ROOMY)
    for _ in range(5):
        door.offer("a", lane=lane, client_max_active=1)
        door.serve(1, each_s=seconds)
    for _ in range(waiting + 1):
        door.offer("a", lane=lane, client_max_active=1)
    return door


@pytest.mark.parametrize("lane", ["interactive", "throughput"], ids=["in the other lane", "where it was measured"])
def test_whose_client_gives_no_slot_back_in_time_is_told_at_once_though_both_lanes_have_room(lane):
    door = a_client_that_gives_back_a_slot_every(10.0)
    ticket = door.offer("a", lane=lane, client_max_active=1, timeout_s=9.0)
    assert ticket.state is TicketState.OVER
    assert [(rejected.code, rejected.retry_after_s) for rejected in door.rejected] == [("deadline", 10)]
    assert door.offer("a", lane=lane, client_max_active=1, timeout_s=11.0).state is TicketState.QUEUED


def test_when_to_come_back_follows_from_what_waits_and_from_the_clients_own_rate():
    door = a_client_that_gives_back_a_slot_every(4.0, waiting=3)
    door.offer("a", lane="throughput", client_max_active=1, timeout_s=15.0)
    assert door.rejected[-1].retry_after_s == 16
    for _ in range(30):
        door.offer("a", lane="throughput", client_max_active=1)
    door.offer("a", lane="throughput", client_max_active=1, timeout_s=15.0)
    assert door.rejected[-1].retry_after_s == MAX_RETRY_S


def test_a_client_at_its_bound_is_no_reason_to_turn_another_away():
    door = a_client_that_gives_back_a_slot_every(10.0, waiting=5)
    assert door.offer("b", lane="throughput", client_max_active=1, timeout_s=0.1).state is TicketState.GRANTED
    assert door.offer("c", lane="interactive", timeout_s=0.1).state is TicketState.GRANTED


def test_before_a_client_has_given_anything_back_it_is_not_sent_away_for_a_guess():
    door = Door(throughput=ROOMY)
    door.confirmed("a", lane="throughput", client_max_active=1)
    assert door.offer("a", lane="throughput", client_max_active=1, timeout_s=0.001).state is TicketState.QUEUED


def test_how_slow_the_lane_once_was_is_not_counted_against_a_client_while_the_lane_has_room():
    door = Door(throughput=(1, 100, 300.0, None))
    for _ in range(3):
        ticket = door.confirmed("slow", lane="throughput")
        door.now_s += 100.0
        door.release(ticket)
    door.perform(door.admission.configure({"throughput": LaneLimits(2, 100, 300.0)}, door.now_s))
    door.confirmed("a", lane="throughput", client_max_active=1)
    assert door.offer("a", lane="throughput", client_max_active=1, timeout_s=5.0).state is TicketState.QUEUED


@pytest.mark.parametrize(("lane_s", "client_s"), [(2.0, 20.0), (20.0, 2.0)])
def test_in_a_full_lane_the_longer_of_both_waits_counts(lane_s, client_s):
    door = Door(interactive=(1, 100, 300.0, None), throughput=(1, 100, 300.0, None))
    for seconds, lane, who in ((client_s, "throughput", "a"), (lane_s, "interactive", "b")):
        ticket = door.confirmed(who, lane=lane, client_max_active=1)
        door.now_s += seconds
        door.release(ticket)
    door.confirmed("b", lane="interactive", client_max_active=1)
    door.confirmed("a", lane="throughput", client_max_active=1)
    assert door.offer("a", lane="interactive", client_max_active=1, timeout_s=19.0).state is TicketState.OVER
    assert door.rejected[-1].retry_after_s == 20
    assert door.offer("a", lane="interactive", client_max_active=1, timeout_s=21.0).state is TicketState.QUEUED


def test_what_waits_for_the_interactive_lane_gets_the_clients_next_slot_and_is_counted_before():
    door = a_client_that_gives_back_a_slot_every(10.0, lane="interactive", waiting=3)
    assert door.offer("a", lane="throughput", client_max_active=1, timeout_s=39.0).state is TicketState.OVER
    patient = door.offer("a", lane="throughput", client_max_active=1, timeout_s=41.0)
    assert [ask.lane for ask in door.serve(4)] == ["interactive", "interactive", "interactive", "interactive"]
    assert patient.state is TicketState.GRANTED


def test_what_waits_for_a_lane_of_one_slot_leaves_the_clients_other_slots_to_the_other_lane():
    door = Door(interactive=(1, 100, 300.0, None), throughput=ROOMY)
    for _ in range(5):
        held = [door.confirmed("a", lane="throughput", client_max_active=2) for _ in range(2)]
        door.now_s += 10.0
        for ticket in held:
            door.release(ticket)
    door.confirmed("a", client_max_active=2)
    running = door.confirmed("a", lane="throughput", client_max_active=2)
    for _ in range(20):
        door.offer("a", client_max_active=2)
    ticket = door.offer("a", lane="throughput", client_max_active=2, timeout_s=11.0)
    assert ticket.state is TicketState.QUEUED
    door.release(running)
    assert ticket.state is TicketState.GRANTED


def test_with_twice_the_bound_a_client_waits_for_half_the_time():
    door = a_client_that_gives_back_a_slot_every(10.0, waiting=2)
    assert door.offer("a", lane="throughput", client_max_active=1, timeout_s=29.0).state is TicketState.OVER
    door.offer("a", lane="throughput", client_max_active=2)
    assert (door.stats("throughput").active, door.stats("throughput").queued) == (2, 2)
    assert door.offer("a", lane="throughput", client_max_active=2, timeout_s=14.0).state is TicketState.OVER
    assert door.offer("a", lane="throughput", client_max_active=2, timeout_s=16.0).state is TicketState.QUEUED


def test_a_client_that_is_given_a_bound_is_measured_from_then_on():
    door = Door(throughput=ROOMY)
    door.confirmed("a", lane="throughput")
    for bound in (None, 2):
        for _ in range(3):
            ticket = door.confirmed("a", lane="throughput", client_max_active=bound)
            door.now_s += 10.0
            door.release(ticket)
    door.confirmed("a", lane="throughput", client_max_active=2)
    assert door.offer("a", lane="throughput", client_max_active=2, timeout_s=9.0).state is TicketState.OVER
    assert door.offer("a", lane="throughput", client_max_active=2, timeout_s=11.0).state is TicketState.QUEUED


def test_an_idle_hour_does_not_make_a_client_look_slow():
    door = Door(throughput=ROOMY)
    for _ in range(5):
        ticket = door.confirmed("a", lane="throughput", client_max_active=1)
        door.now_s += 1.0
        door.release(ticket)
        door.now_s += 3600.0
    door.confirmed("a", lane="throughput", client_max_active=1)
    assert door.offer("a", lane="throughput", client_max_active=1, timeout_s=2.0).state is TicketState.QUEUED
    assert door.offer("a", lane="throughput", client_max_active=1, timeout_s=1.0).state is TicketState.OVER


def test_a_new_sub_client_does_not_wait_behind_all_of_anothers_and_is_not_turned_away_for_them():
    door = a_client_that_gives_back_a_slot_every(10.0, waiting=20)
    for sub_client, state in (("", TicketState.OVER), ("person", TicketState.QUEUED)):
        ticket = door.offer("a", lane="throughput", client_max_active=1, sub_client=sub_client, timeout_s=25.0)
        assert ticket.state is state
    assert "person" in [ask.sub_client for ask in door.serve(3)]


def test_auto_turns_away_whose_client_gives_no_slot_back_in_time():
    door = a_client_that_gives_back_a_slot_every(10.0)
    door.offer("a", lane="auto", auto=AutoFacts(), client_max_active=1, timeout_s=5.0)
    assert [(rejected.code, rejected.retry_after_s) for rejected in door.rejected] == [("deadline", 10)]


def test_ten_thousand_bounded_clients_leave_no_memory_behind():
    door = Door(throughput=ROOMY)
    for number in range(10_000):
        door.release(door.confirmed(f"client-{number}", lane="throughput", client_max_active=2))
    clients = door.admission._clients
    assert (len(clients._busy), len(clients._idle)) == (0, MAX_IDLE_CLIENTS)


# whatever the numbers are


@given(
    bound=st.integers(1, 4),
    each_s=st.floats(0.5, 20.0),
    waiting=st.integers(0, 8),
    phase=st.floats(0.0, 0.99),
    patience=st.floats(0.05, 10.0),
)
def test_who_is_turned_away_at_once_could_not_have_started_in_time_and_who_waits_can(
    bound, each_s, waiting, phase, patience
):
    """Where every request takes equally long, the forecast is right to within one request."""

    def client(timeout_s):
        """The client's last request, and how long it waited if it was let in."""
        door = Door(throughput=(8, 100, 1e6, None))
        ask = {"lane": "throughput", "client_max_active": bound}
        held = [door.confirmed("a", **ask) for _ in range(bound)]

        def a_round():
            for ticket in held:
                door.release(ticket)
            held[:] = [granted.ticket for granted in door.granted if granted.ticket.state is TicketState.GRANTED]
            for ticket in held:
                door.admission.confirm(ticket)
            held.extend(door.confirmed("a", **ask) for _ in range(bound - len(held)))

        for _ in range(3):
            door.now_s += each_s
            a_round()
        for _ in range(waiting):
            door.offer("a", **ask)
        door.now_s += phase * each_s
        newcomer = door.offer("a", timeout_s=timeout_s, **ask)
        waited_s = -phase * each_s
        while newcomer.state is TicketState.QUEUED:
            waited_s += each_s
            a_round()
        return newcomer, waited_s

    timeout_s = patience * each_s
    newcomer, _ = client(timeout_s)
    patient, waited_s = client(None)
    assert patient.state is TicketState.ACTIVE
    if newcomer.state is TicketState.OVER:
        assert waited_s > timeout_s - each_s
    else:
        assert waited_s < timeout_s + each_s


@given(
    slots=st.integers(1, 5),
    clients=st.lists(
        st.tuples(st.sampled_from([0.5, 1.0, 2.0, 3.0, 8.0]), st.none() | st.integers(1, 3)), min_size=2, max_size=5
    ),
    endings=st.lists(st.integers(0, 4), min_size=1, max_size=80),
)
def test_clients_that_may_run_share_by_weight_within_one_service_whoever_else_is_at_its_bound(slots, clients, endings):
    door = Door(throughput=(slots, 1000, 1e6, None))
    names = [str(number) for number in range(len(clients))]
    weight = {name: client[0] for name, client in zip(names, clients, strict=True)}
    bound = {name: client[1] for name, client in zip(names, clients, strict=True)}
    running, active, told = [], Counter(), 0
    ahead = dict.fromkeys(combinations(names, 2), (0.0, 0.0, 0.0))
    """Of two clients that both may run: by how much service the first leads now, and its least and greatest lead."""

    def grants():
        nonlocal told
        for granted in door.granted[told:]:
            name = granted.ticket.ask.client
            may_run = {n for n in names if bound[n] is None or active[n] < bound[n]}
            assert name in may_run
            for one, other in ahead:
                if not {one, other} <= may_run:
                    ahead[one, other] = (0.0, 0.0, 0.0)  # whoever was at its bound starts anew
                    continue
                now, least, most = ahead[one, other]
                now += {one: 1 / weight[one], other: -1 / weight[other]}.get(name, 0.0)
                least, most = min(least, now), max(most, now)
                ahead[one, other] = now, least, most
                assert most - least <= 1 / weight[one] + 1 / weight[other] + 1e-9, (one, other)
            active[name] += 1
            door.admission.confirm(granted.ticket)
            running.append(granted.ticket)
        told = len(door.granted)

    for _ in range(100):
        for name in names:
            door.offer(name, lane="throughput", client_weight=weight[name], client_max_active=bound[name])
    told, before = 0, list(door.granted)
    for granted in before:  # while the first ones came, not everybody was there
        door.admission.confirm(granted.ticket)
        running.append(granted.ticket)
        active[granted.ticket.ask.client] += 1
    told = len(before)
    for ending in endings:
        ticket = running.pop(ending % len(running))
        active[ticket.ask.client] -= 1
        door.release(ticket)
        grants()
    for ticket in [granted.ticket for granted in door.granted]:
        if ticket.state is TicketState.ACTIVE:
            door.release(ticket)
        door.withdraw(ticket)
