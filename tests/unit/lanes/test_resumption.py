"""What a request takes to its next host, and who goes first."""

from hypothesis import given
from hypothesis import strategies as st

from lanes import wire
from lanes.resumption import History, next_up

ASKED = wire.Submit("a", "m", "interactive", wire.TextPrompt("x"), 8, wire.Sampling(seed=3), stop=("s",))


def delta(index, *token_ids, text="", speculative=None):
    return wire.Delta("a", index, token_ids, text, speculative)


def a_history(**asked):
    return History(wire.Submit(**{**{name: getattr(ASKED, name) for name in ASKED.__struct_fields__}, **asked}))


def test_a_request_takes_its_tokens_the_length_of_its_text_and_its_counters_and_is_otherwise_as_it_was_asked():
    history = History(ASKED)
    assert history.submission() == ASKED
    history.grew(delta(0, 5, 6, text="\u00e9", speculative=wire.SpecCounters(1, 2, 1, 1)))
    history.grew(delta(2, 7, speculative=wire.SpecCounters(2, 4, 2, 2)))
    assert history.host_died() is None
    resumed = history.submission()
    assert resumed.emitted == wire.Emitted((5, 6, 7), 1, wire.SpecCounters(2, 4, 2, 2))
    assert {name for name in ASKED.__struct_fields__ if getattr(resumed, name) != getattr(ASKED, name)} == {"emitted"}


def test_the_second_host_that_dies_without_a_token_makes_it_the_poison():
    history = History(ASKED)
    history.grew(delta(0, 5))
    assert history.host_died() is None
    end = history.host_died()
    assert (end.request_id, end.code) == ("a", "poison_request")


def test_a_request_that_got_a_token_from_each_of_its_hosts_may_see_any_number_of_them_die():
    history = History(ASKED)
    for index in range(50):
        history.grew(delta(index, 5))
        assert history.host_died() is None
    history.grew(delta(50, text="a held back end"))  # no token
    assert history.host_died().code == "poison_request"


def test_who_was_cancelled_does_not_go_to_another_host():
    history = History(ASKED)
    history.started(wire.Started("a", 4))
    history.grew(delta(0, 5, speculative=wire.SpecCounters(1)))
    history.cancelled = True
    assert history.host_died() == wire.Finished("a", "cancelled", 4, 1, speculative=wire.SpecCounters(1))


class Waiting:
    def __init__(self, name, history, deaths):
        self.name, self.history = name, history
        for _ in range(deaths):
            history.host_died()


def waiting(name, *, lane="interactive", deaths=1, prompt_tokens=10, tokens=0):
    history = a_history(lane=lane)
    history.started(wire.Started("a", prompt_tokens))
    if tokens:
        history.grew(delta(0, *range(tokens)))
    return Waiting(name, history, deaths)


def names(chosen):
    return [one.name for one in chosen]


def test_one_suspect_at_a_time_goes_to_a_host_and_the_innocent_all():
    crowd = [waiting("a"), waiting("new", deaths=0), waiting("b"), waiting("newer", deaths=0)]
    assert names(next_up(crowd, on_trial=False)) == ["a", "new", "newer"]
    assert names(next_up(crowd, on_trial=True)) == ["new", "newer"]
    assert next_up([], on_trial=False) == []


def test_the_interactive_lane_goes_first_and_then_who_costs_least_and_last_whose_prompt_nobody_knows():
    crowd = [
        waiting("unknown", lane="throughput", prompt_tokens=0),
        waiting("long", lane="throughput", tokens=40),
        waiting("person", tokens=99),
        waiting("short", lane="throughput", tokens=2),
    ]
    order = []
    while crowd:
        (one,) = next_up(crowd, on_trial=False)
        crowd.remove(one)
        order.append(one.name)
    assert order == ["person", "short", "long", "unknown"]


@given(st.data())
def test_a_poison_dies_after_two_hosts_and_takes_nobody_along(data):
    """Whoever is on trial with the poison's neighbours, in whatever order: each host dies when it meets the poison."""
    crowd = [
        waiting(name, lane=data.draw(st.sampled_from(["interactive", "throughput"])), deaths=0)
        for name in ("poison", "a", "b", "c", "d")
    ]
    begun, failed = [], []
    hosts = 0
    while crowd and hosts < 10:
        hosts += 1
        begun, alive, on_trial = [], True, None
        while alive and (going := next_up(crowd, on_trial=on_trial is not None)):
            for one in data.draw(st.permutations(going)):
                crowd.remove(one)
                begun.append(one)
                on_trial = one if one.history.deaths else on_trial
            alive = all(one.name != "poison" for one in begun)
            if alive or data.draw(st.booleans()):
                for one in begun:
                    if one.name != "poison":
                        one.history.grew(delta(0, 1))
                on_trial = None if on_trial is not None and on_trial.name != "poison" else on_trial
        if alive:
            break
        for one in begun:
            (crowd if one.history.host_died() is None else failed).append(one)
    assert (names(failed), hosts) == (["poison"], 3)
    assert sorted(names(begun)) == ["a", "b", "c", "d"]
