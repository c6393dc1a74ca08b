"""The last requests, as the dispatcher tells them."""

import inspect

import msgspec
import pytest

from opta_router.journal import MAX_ENDED, MAX_MOMENTS, Journal, WatchedTrace
from opta_router.telemetry import NO_TRACE, RequestTrace
from tests.unit.telemetry.lives import CANARY, begin, classify, ending, to_first_token


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def journal(clock):
    return Journal(clock, lambda: 5000.0 + clock.now_s)


def last(journal):
    return journal.ended_after(0)[-1].entry


class Heard(RequestTrace):
    """Remembers what it was told."""

    def __init__(self):
        self.told = []


def hear(name):
    def method(self, *args, **kwargs):
        self.told.append(name)

    return method


TOLD = [name for name, _ in inspect.getmembers(RequestTrace, inspect.isfunction) if not name.startswith("_")]
for told in TOLD:
    setattr(Heard, told, hear(told))


@pytest.mark.parametrize("name", TOLD)
def test_everything_that_a_trace_is_told_is_passed_on(journal, name):
    assert name in vars(WatchedTrace), f"RequestTrace.{name} would be lost on the way"
    inner = Heard()
    trace = journal.watched(inner)
    arguments = [None] * (len(inspect.signature(getattr(RequestTrace, name)).parameters) - 1)
    if name == "classified":
        classify(trace)
    elif name == "finished":
        trace.finished(ending())
    else:
        getattr(trace, name)(*arguments)
    assert inner.told == [name]


def test_an_answer_is_kept_with_its_moments_and_what_its_client_was_told(journal, clock):
    trace = journal.watched(NO_TRACE)
    clock.now_s += 0.001
    to_first_token(trace)
    assert [entry.request_id for _, entry in journal.open_entries()] == ["r-1"]
    clock.now_s += 0.5
    trace.finished(ending())
    clock.now_s += 7  # a slow reader's last write is no part of it
    trace.responded(200)
    entry = last(journal)
    assert [moment.name for moment in entry.moments] == ["queued", "admitted", "dispatched", "first_token"]
    assert {moment.at_ms for moment in entry.moments} == {1.0}
    assert (entry.outcome, entry.finish_reason, entry.status, entry.duration_ms) == ("finished", "stop", 200, 501.0)
    assert (entry.lane, entry.route, entry.arrived_s) == ("interactive", "auto:room", 5100.0)
    assert entry.opta == ending().opta
    assert journal.stats() == {"open": 0, "ended": 1}


def test_the_first_end_counts_and_a_client_that_leaves_is_no_failure(journal):
    trace = journal.watched(NO_TRACE)
    classify(trace)
    trace.cancelled()
    trace.failed("engine_died")
    trace.responded(None)
    assert (last(journal).outcome, last(journal).code) == ("cancelled", None)


def test_a_rejection_is_kept_with_its_code(journal):
    trace = journal.watched(NO_TRACE)
    classify(trace)
    trace.queued()
    trace.failed("queue_full")
    trace.responded(429)
    assert (last(journal).outcome, last(journal).code, last(journal).status) == ("failed", "queue_full", 429)


def test_a_body_that_nobody_could_read_is_not_kept(journal):
    trace = journal.watched(NO_TRACE)
    trace.failed("invalid_json")
    trace.responded(400)
    assert journal.stats() == {"open": 0, "ended": 0}


def test_a_resumption_and_a_demotion_are_moments(journal):
    trace = journal.watched(NO_TRACE)
    to_first_token(trace)
    trace.interrupted()
    trace.resumed(17)
    trace.demoted("throughput", 40)
    trace.finished(ending(resumed=1))
    trace.responded(200)
    names = [(moment.name, moment.tokens, moment.lane) for moment in last(journal).moments[4:]]
    assert names == [("interrupted", None, None), ("resumed", 17, None), ("demoted", 40, "throughput")]


def test_the_journal_reaches_back_so_far_and_no_further(journal):
    for _ in range(MAX_ENDED + 5):
        trace = journal.watched(NO_TRACE)
        classify(trace)
        trace.cancelled()
        trace.responded(None)
    assert [one.order for one in journal.ended_after(0)] == list(range(6, MAX_ENDED + 6))
    assert [one.order for one in journal.ended_after(MAX_ENDED + 3)] == [MAX_ENDED + 4, MAX_ENDED + 5]
    assert journal.ended_after(journal.ends) == []


def test_a_request_whose_hosts_keep_dying_has_a_bounded_number_of_moments(journal):
    trace = journal.watched(NO_TRACE)
    to_first_token(trace)
    for _ in range(MAX_MOMENTS):
        trace.interrupted()
        trace.resumed(1)
    trace.cancelled()
    trace.responded(None)
    assert len(last(journal).moments) == MAX_MOMENTS


def test_nothing_that_a_client_wrote_is_kept(journal):
    trace = journal.watched(NO_TRACE)
    to_first_token(trace)
    trace.finished(ending())
    trace.responded(200)
    (one,) = journal.ended_after(0)
    assert CANARY not in one.encoded.decode()
    assert msgspec.json.decode(one.encoded)["request_id"] == "r-1"
    assert one.encoded is one.encoded


def test_it_stands_in_for_the_trace_that_tracing_makes(journal):
    class Tracing:
        def request(self, **_):
            return NO_TRACE

    trace = journal.watched(begin(Tracing()))
    to_first_token(trace)
    trace.responded(500)
    assert last(journal).outcome == "cancelled"
