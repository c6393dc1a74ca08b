"""When hosts are started, and without which models."""

import pytest

from lanes.restarts import BACKOFF_S, GIVE_UP_LIVES, HEALTHY_S, QUARANTINE_S, Restarts


class Router:
    def __init__(self, chance=0.0):
        self.now_s = 1000.0
        self.restarts = Restarts(lambda: self.now_s, lambda: chance)

    def lives(self, *, suspect=None, fruitful=(), lived_s=0.1):
        """A host is started when it may be, and dies; when it was started."""
        self.now_s += self.restarts.wait_s()
        started_s = self.now_s
        self.restarts.started()
        self.now_s += lived_s
        self.restarts.died(suspect, fruitful, "it broke")
        return started_s

    def quarantined(self):
        return set(self.restarts.quarantined())


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_hosts_that_die_at_their_start_are_started_five_times_a_minute_at_most(chance):
    router = Router(chance)
    starts_s = [router.lives(lived_s=0.0) for _ in range(30)]
    for first_s, sixth_s in zip(starts_s, starts_s[5:], strict=False):
        assert sixth_s - first_s >= 60


def test_jitter_only_makes_waits_longer_and_by_no_more_than_a_quarter():
    for chance, factor in ((0.0, 1.0), (1.0, 1.25)):
        router = Router(chance)
        for wait_s in BACKOFF_S:
            assert router.restarts.wait_s() == wait_s * factor
            router.lives()


@pytest.mark.parametrize("life", [{"fruitful": {"m"}}, {"lived_s": HEALTHY_S}])
def test_a_host_that_did_its_work_is_replaced_at_once(life):
    router = Router()
    for _ in range(4):
        router.lives()
    router.lives(**life)
    assert (router.restarts.wait_s(), router.restarts.fruitless) == (0, 0)


def test_nobody_waits_for_the_next_host_when_five_in_a_row_did_nothing():
    router = Router()
    for _ in range(GIVE_UP_LIVES):
        assert not router.restarts.given_up
        router.lives()
    assert router.restarts.given_up
    router.lives(fruitful={"m"})
    assert not router.restarts.given_up


def test_the_model_that_three_hosts_died_of_in_a_row_is_left_out_and_the_next_is_started_at_once():
    router = Router()
    for _ in range(3):
        assert router.quarantined() == set()
        router.lives(suspect="bad")
    assert router.quarantined() == {"bad"}
    assert router.restarts.wait_s() == 0
    entry = router.restarts.quarantined()["bad"]
    assert (entry.deaths, entry.cause, entry.until_s) == (3, "it broke", router.now_s + QUARANTINE_S)


def test_a_model_that_brought_tokens_on_a_host_is_not_blamed_for_its_death():
    router = Router()
    for _ in range(50):
        router.lives(suspect="m", fruitful={"m"})
    for _ in range(2):
        router.lives(suspect="m", fruitful={"other"})
    router.lives(suspect="m", fruitful={"m"})
    router.lives(suspect="m")
    assert router.quarantined() == set()


def test_a_quarantine_ends_by_itself_and_one_more_death_makes_it_longer():
    router = Router()
    for _ in range(3):
        router.lives(suspect="bad")
    for times in (2, 4, 8, 15, 15):
        router.now_s = router.restarts.quarantined()["bad"].until_s
        assert router.quarantined() == set()
        router.lives(suspect="bad")
        assert router.restarts.quarantined()["bad"].until_s == router.now_s + times * QUARANTINE_S


def test_a_quarantine_that_is_lifted_gives_all_chances_back():
    router = Router()
    for _ in range(3):
        router.lives(suspect="bad")
    router.restarts.lift("bad")
    assert router.quarantined() == set()
    for _ in range(2):
        router.lives(suspect="bad")
    assert router.quarantined() == set()


def test_each_model_is_blamed_for_its_own_deaths():
    router = Router()
    for suspect in ("a", "b", "a", None, "b"):
        router.lives(suspect=suspect)
    assert router.quarantined() == set()
    router.lives(suspect="b")
    assert router.quarantined() == {"b"}
