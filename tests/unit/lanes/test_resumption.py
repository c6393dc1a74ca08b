"""What a request takes to its next host, and who goes first."""

from hypothesis import given
from hypothesis import strategies as st

from lanes import wire
from lanes.resumption import GOING_DELTAS, History, next_up

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
    assert history.host_died(on_trial=True) is None
    resumed = history.submission()
    assert resumed.emitted == wire.Emitted((5, 6, 7), 1, wire.SpecCounters(2, 4, 2, 2))
    assert {name for name in ASKED.__struct_fields__ if getattr(resumed, name) != getattr(ASKED, name)} == {"emitted"}


def test_the_second_host_that_dies_before_it_got_going_makes_it_the_poison_if_it_was_on_trial():
    history = History(ASKED)
    history.grew(delta(0, 5))
    assert history.host_died(on_trial=True) is None
    end = history.host_died(on_trial=True)
    assert (end.request_id, end.code) == ("a", "poison_request")


def test_hosts_that_die_of_a_load_make_nobody_a_suspect():
    history = History(ASKED)
    for _ in range(5):
        history.submission()
        assert history.host_died(on_trial=True, loading=True) is None
        assert not history.suspect
    assert history.host_died(on_trial=True) is None
    assert history.host_died(on_trial=True, loading=True) is None
    assert history.suspect
    assert history.host_died(on_trial=True).code == "poison_request"


def test_a_request_that_each_of_its_hosts_got_going_may_see_any_number_of_them_die():
    history = History(ASKED)
    for index in range(0, 100, 2):
        history.submission()
        history.grew(delta(index, 5))
        history.grew(delta(index + 1, 5))
        assert history.host_died(on_trial=True) is None
    history.submission()
    history.grew(delta(100, 5))
    history.grew(delta(101, text="a held back end"))  # no token
    assert history.host_died(on_trial=True).code == "poison_request"


def test_a_request_that_its_host_brought_to_an_end_was_got_going_however_short_it_was():
    history = History(ASKED)
    history.grew(delta(0, 5))
    assert not history.going
    history.finished(wire.Finished("a", "cancelled", 4, 1))
    assert not history.going
    history.finished(wire.Finished("a", "stop", 4, 1))
    assert history.going


def test_who_was_cancelled_does_not_go_to_another_host():
    history = History(ASKED)
    history.started(wire.Started("a", 4))
    history.grew(delta(0, 5, speculative=wire.SpecCounters(1)))
    history.cancelled = True
    assert history.host_died(on_trial=True) == wire.Finished("a", "cancelled", 4, 1, speculative=wire.SpecCounters(1))


def test_who_was_not_alone_on_the_hosts_that_died_is_a_suspect_and_no_more():
    history = History(ASKED)
    for _ in range(5):
        history.submission()
        assert history.host_died(on_trial=False) is None
        assert history.suspect
    assert history.host_died(on_trial=True).code == "poison_request"


def test_whom_the_host_that_died_had_got_going_is_no_suspect_until_the_next_one_dies():
    history = History(ASKED)
    assert not history.suspect
    for suspect in (False, True):
        history.submission()
        history.grew(delta(history.emitted_tokens, 5))
        if not suspect:
            history.grew(delta(1, 5))
        history.host_died(on_trial=False)
        assert history.suspect is suspect


class Waiting:
    def __init__(self, name, history):
        self.name, self.history = name, history


def waiting(name, *, lane="interactive", deaths=1, prompt_tokens=10, tokens=0, steady=False):
    history = a_history(lane=lane)
    history.started(wire.Started("a", prompt_tokens))
    if tokens:
        history.grew(delta(0, *range(tokens)))
    for _ in range(deaths):
        history.submission()
        for index in range(2 * steady):
            history.grew(delta(tokens + index, 1))
        history.host_died(on_trial=False)
    return Waiting(name, history)


def names(chosen):
    return [one.name for one in chosen]


def test_the_steady_go_together_then_one_suspect_at_a_time_and_then_the_new():
    crowd = [waiting("a"), waiting("new", deaths=0), waiting("b"), waiting("steady", steady=True)]
    assert names(next_up(crowd, unsettled=0, on_trial=False)) == ["steady"]
    assert names(next_up(crowd, unsettled=9, on_trial=False)) == ["steady"]
    rest = crowd[:3]
    assert next_up(rest, unsettled=1, on_trial=False) == []
    assert names(next_up(rest, unsettled=0, on_trial=False)) == ["a"]
    assert next_up(crowd, unsettled=1, on_trial=True) == []
    assert names(next_up(crowd[1::2], unsettled=1, on_trial=False)) == ["new", "steady"]
    assert next_up([], unsettled=0, on_trial=False) == []


def test_the_interactive_lane_goes_first_and_then_who_costs_least_and_last_whose_prompt_nobody_knows():
    crowd = [
        waiting("unknown", lane="throughput", prompt_tokens=0),
        waiting("long", lane="throughput", tokens=40),
        waiting("person", tokens=99),
        waiting("short", lane="throughput", tokens=2),
    ]
    order = []
    while crowd:
        (one,) = next_up(crowd, unsettled=0, on_trial=False)
        crowd.remove(one)
        order.append(one.name)
    assert order == ["person", "short", "long", "unknown"]


class Hosts:
    """Hosts that die when they work on the poison, once it has had so many tokens in all, and some of this host."""

    def __init__(self, crowd, poison_after, of_each_host):
        self.waiting, self.failed, self.poison_after, self.of_each_host = crowd, [], poison_after, of_each_host
        self.poison_tokens = 0
        self.deaths = 0

    def live(self, data):
        """One host's life. Returns whether it is still alive when nobody waits any more and the poison is not there."""
        here, unsettled, on_trial, poison_tokens_here = [], set(), None, 0
        while True:
            going = next_up(self.waiting, unsettled=len(unsettled), on_trial=on_trial is not None)
            for one in going:
                self.waiting.remove(one)
                here.append(one)
                on_trial = one if one.history.suspect else on_trial
                one.history.submission()
                unsettled.add(one.name)
            if not unsettled and not going and "poison" not in names(here):
                assert not self.waiting
                return True
            for one in data.draw(st.permutations(here)):
                if one.name == "poison":
                    if self.poison_tokens >= self.poison_after and poison_tokens_here >= self.of_each_host:
                        self._die(here, unsettled)
                        return False
                    self.poison_tokens += 1
                    poison_tokens_here += 1
                one.history.grew(delta(one.history.emitted_tokens, 1))
                if one.history.going:
                    unsettled.discard(one.name)
                    on_trial = None if one is on_trial else on_trial

    def _die(self, here, unsettled):
        self.deaths += 1
        for one in here:
            ended = one.history.host_died(on_trial=unsettled == {one.name})
            (self.failed if ended else self.waiting).append(one)


@given(st.data(), st.integers(0, 4), st.sampled_from([0, 1]))
def test_the_poison_is_found_and_nobody_else_fails_whatever_ran_beside_it(data, poison_after, of_each_host):
    lanes = st.sampled_from(["interactive", "throughput"])
    crowd = [waiting(name, lane=data.draw(lanes), deaths=0) for name in ("poison", "a", "b", "c", "d")]
    hosts = Hosts(crowd, poison_after, of_each_host)
    while not hosts.live(data):
        assert hosts.deaths <= 3
    assert names(hosts.failed) == ["poison"]
    # Before it got going it is a suspect from the first death on; later it was steady then, and went with the others.
    assert hosts.deaths == 2 if poison_after < GOING_DELTAS else hosts.deaths in (2, 3)
