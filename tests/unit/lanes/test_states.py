"""The table of a host's life."""

import pytest

from lanes.states import TRANSITIONS, HostEvent, HostState, IllegalTransition, after

LEGAL = {(state, event) for state, row in TRANSITIONS.items() for event in row}
ILLEGAL = [(state, event) for state in HostState for event in HostEvent if (state, event) not in LEGAL]


def test_a_host_that_dies_twice_lives_this_life():
    state = HostState.STOPPED
    life = []
    for event in ("spawn", "ready", "died", "spawn", "died", "spawn", "ready", "stop"):
        state = after(state, HostEvent(event))
        life.append(state.value)
    assert life == ["starting", "ready", "restarting", "starting", "restarting", "starting", "ready", "stopped"]


@pytest.mark.parametrize("state", HostState)
def test_every_state_can_be_stopped(state):
    assert after(state, HostEvent.STOP) is HostState.STOPPED


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_an_illegal_event_raises_and_names_what_is_possible(state, event):
    table = {s: dict(row) for s, row in TRANSITIONS.items()}
    with pytest.raises(IllegalTransition, match=f"host is {state}: {event} cannot happen") as caught:
        after(state, event)
    for possible in TRANSITIONS[state]:
        assert possible in str(caught.value).split("possible:")[1]
    assert table == TRANSITIONS


def test_only_a_starting_host_becomes_ready_and_a_stopped_one_cannot_die():
    assert [state for state in HostState if HostEvent.READY in TRANSITIONS[state]] == [HostState.STARTING]
    assert HostEvent.DIED not in TRANSITIONS[HostState.STOPPED]
