"""Who is killed and who is not, with a clock that the test turns."""

import random
from itertools import product

import pytest

from lanes.heartbeat import KINDS, LANES, Activity, Beat, Took
from lanes.watchdog import DOUBT, ENOUGH_STEPS, MIN_DEADLINE_S, SILENCE_S, TICK_S, UNMEASURED_S, UsualStep, Watchdog


class Host:
    """A device loop, its wire thread, and the watchdog that looks at them once a tick."""

    def __init__(self, usual=None, step_s=0.0):
        self.usual = usual or UsualStep()
        for lane, activity in product(LANES, (Activity.PREFILL, Activity.DECODE)) if step_s else ():
            for _ in range(ENOUGH_STEPS):
                self.usual.took(lane, activity, step_s)
        self.now_s = 1000.0
        self.watchdog = Watchdog(self.usual, self.now_s)
        self.count = self.heard = 0
        self.signs = 0.0
        self.steps, self.computed = [0, 0], [0, 0]
        self.took = dict.fromkeys(KINDS, Took())
        self.beat, self.began_s = Beat(), self.now_s

    def begins(self, activity, lane="interactive", tokens=0):
        index = LANES.index(lane)
        self.count += 1
        self.steps[index] += activity in (Activity.PREFILL, Activity.DECODE)
        ended = self.beat.lane, self.beat.activity
        if ended in self.took:
            before = self.took[ended]
            self.took[ended] = Took(before.steps + 1, before.seconds + self.now_s - self.began_s)
        took = tuple(self.took.values())
        self.beat = Beat(self.count, tuple(self.steps), tuple(self.computed), activity, lane, "m", took)
        self.began_s = self.now_s
        self.computed[index] += tokens  # seen when the next thing begins

    def passes(self, seconds, *, tick_s=TICK_S):
        """Time with nothing new; the verdict, and after how long."""
        for tick in range(1, round(seconds / tick_s) + 1):
            self.now_s += tick_s
            verdict = self.look()
            if verdict is not None:
                return verdict, tick * tick_s
        return None

    def look(self):
        return self.watchdog.observe(self.beat, heard=self.heard, signs=self.signs, now_s=self.now_s)

    def steps_for(self, seconds, activity=Activity.DECODE, lane="interactive", *, tokens=1, step_s=TICK_S, hears=True):
        for _ in range(round(seconds / step_s)):
            self.begins(activity, lane, tokens)
            self.heard += hears
            found = self.passes(step_s)
            if found is not None:
                return found[0]
        return None


@pytest.mark.parametrize(
    ("activity", "step_s", "deadline_s"),
    [
        (Activity.DECODE, 0.02, MIN_DEADLINE_S),
        (Activity.PREFILL, 0.3, MIN_DEADLINE_S),
        (Activity.PREFILL, 2.0, 20.0),
        (Activity.DECODE, 0.0, UNMEASURED_S[Activity.DECODE]),
        (Activity.IDLE, 0.02, MIN_DEADLINE_S),
        (Activity.STARTING, 0.02, UNMEASURED_S[Activity.STARTING]),
        (Activity.LOAD, 0.02, UNMEASURED_S[Activity.LOAD]),
    ],
)
def test_a_loop_that_stands_still_is_noticed_at_its_deadline_and_not_before(activity, step_s, deadline_s):
    host = Host(step_s=step_s)
    if activity is not Activity.STARTING:
        host.begins(activity)
    verdict, after_s = host.passes(1000)
    assert deadline_s < after_s <= deadline_s + 2 * TICK_S
    assert "has not moved" in verdict


def test_a_host_is_doubted_well_before_it_is_given_up_and_no_more_when_it_moves():
    host = Host(step_s=0.02)
    host.begins(Activity.DECODE)
    assert host.passes(DOUBT * MIN_DEADLINE_S) is None
    assert not host.watchdog.doubtful
    assert host.passes(2 * TICK_S) is None
    assert host.watchdog.doubtful
    host.begins(Activity.DECODE, tokens=1)
    assert host.look() is None
    assert not host.watchdog.doubtful


def test_five_steps_tell_what_is_usual_however_quickly_they_pass():
    host = Host()
    for _ in range(ENOUGH_STEPS):
        host.begins(Activity.DECODE, tokens=1)
        host.now_s += 0.001
    host.begins(Activity.IDLE)
    assert host.look() is None
    assert host.usual.deadline_s("interactive", Activity.DECODE) == MIN_DEADLINE_S
    assert host.usual.deadline_s("throughput", Activity.DECODE) == UNMEASURED_S[Activity.DECODE]


def test_a_verdict_names_what_stands_still():
    host = Host(step_s=0.02)
    host.begins(Activity.DECODE, "throughput")
    assert host.passes(60)[0].startswith("a decode step of m in the throughput lane has not moved for 5.")


def test_a_slow_but_honest_prefill_is_never_killed():
    chance = random.Random(6)
    killed = 0
    for machine in range(20):
        usual, usual_s = UsualStep(), 0.1 * 1.2**machine
        for _ in range(50):
            host = Host(usual)
            for _ in range(chance.randrange(1, 12)):
                host.begins(Activity.PREFILL, chance.choice(LANES), tokens=64)
                host.heard += 1
                killed += host.passes(usual_s * chance.uniform(0.1, 5)) is not None
    assert killed == 0


def test_thousands_of_short_steps_do_not_make_a_long_one_suspicious():
    host = Host(step_s=2.0)
    for _ in range(40):
        for _ in range(100):
            host.begins(Activity.PREFILL, tokens=1)
        assert host.passes(TICK_S) is None
    host.begins(Activity.PREFILL)
    assert host.passes(8) is None


def test_a_step_is_measured_whatever_the_ticks():
    for step_s in (0.5, 3.0):
        host = Host()
        assert host.steps_for(120, step_s=step_s) is None
        assert host.usual.deadline_s("interactive", Activity.DECODE) == pytest.approx(
            max(MIN_DEADLINE_S, 10 * step_s), rel=0.2
        )
    host = Host()
    for _ in range(100):
        for _ in range(25):  # of 10 ms
            host.begins(Activity.DECODE, tokens=1)
        assert host.passes(TICK_S) is None
    assert host.usual.deadline_s("interactive", Activity.DECODE) == MIN_DEADLINE_S


@pytest.mark.parametrize("activity", [Activity.PREFILL, Activity.DECODE])
def test_a_loop_that_turns_and_computes_nothing_is_noticed(activity):
    host = Host(step_s=0.02)
    verdict = host.steps_for(60, activity, tokens=0)
    assert "the steps of the interactive lane have computed nothing for 5." in verdict


def test_a_lane_that_gets_nowhere_is_noticed_beside_one_that_does():
    host = Host(step_s=0.02)
    for _ in range(100):
        host.begins(Activity.DECODE, "interactive", tokens=3)
        host.begins(Activity.DECODE, "throughput", tokens=0)
        found = host.passes(TICK_S)
        if found is not None:
            break
    assert "throughput lane have computed nothing" in found[0]


def test_a_long_prompt_that_brings_no_token_for_minutes_is_not_mistaken_for_one():
    host = Host(step_s=0.3)
    assert host.steps_for(300, Activity.PREFILL, tokens=256) is None


def test_a_lane_without_work_is_not_late():
    host = Host(step_s=0.02)
    host.begins(Activity.DECODE, "throughput")
    assert host.steps_for(120) is None
    host.begins(Activity.DECODE, "throughput")
    assert host.steps_for(4) is None


def test_an_idle_loop_that_looks_every_second_is_alive():
    host = Host()
    for _ in range(200):
        host.begins(Activity.IDLE)
        host.heard += 1
        assert host.passes(1.0) is None


def test_a_load_is_judged_by_the_time_between_two_signs_of_progress():
    host = Host()
    host.begins(Activity.LOAD)
    for _ in range(10):
        assert host.passes(50) is None
        host.signs += 0.01
    assert host.passes(1000)[1] == pytest.approx(UNMEASURED_S[Activity.LOAD], abs=1)


def test_a_wire_thread_that_says_nothing_while_the_loop_turns_is_noticed():
    host = Host()
    assert host.steps_for(20) is None
    verdict = host.steps_for(SILENCE_S + 5, hears=False)
    assert "has said nothing for 30." in verdict


def test_time_in_which_the_watchdog_did_not_run_counts_for_nobody():
    host = Host(step_s=0.02)
    host.begins(Activity.DECODE)
    for sleep_s in (3600, -3600, 10):
        host.now_s += sleep_s
        assert host.look() is None
    assert host.passes(2) is None
