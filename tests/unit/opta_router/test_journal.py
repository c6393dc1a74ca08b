"""The last requests, as the dispatcher tells them."""

import gc
import inspect

import msgspec
import pytest

from opta_router.journal import MAX_ENDED, MAX_MOMENTS, Journal
from opta_router.request import Usage
from opta_router.telemetry import NO_TRACE, RequestTrace
from tests.unit.telemetry.lives import CANARY, REQUEST, VERDICT, begin, classify, ending, to_first_token


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

    records_content = True
    identity = "an identity"

    def __init__(self):
        self.heard = []

    @property
    def told(self):
        return [name for name, _, _ in self.heard]


def hear(name):
    def method(self, *args, **kwargs):
        self.heard.append((name, args, kwargs))

    return method


SAYS = [name for name, _ in inspect.getmembers(RequestTrace, inspect.isfunction) if not name.startswith("_")]
SHOWS = [name for name, _ in inspect.getmembers(RequestTrace, lambda member: isinstance(member, property))]
for said in SAYS:
    setattr(Heard, said, hear(said))


@pytest.mark.parametrize("name", SAYS)
def test_everything_that_a_trace_is_told_is_passed_on_as_it_is(journal, name):
    inner = Heard()
    parameters = list(inspect.signature(getattr(RequestTrace, name)).parameters.values())[1:]
    given = {
        "request": REQUEST,
        "verdict": VERDICT,
        "ending": ending(),
        "usage": Usage(prompt_tokens=1, completion_tokens=2),
    }
    told = {one.name: given.get(one.name, f"the {one.name}") for one in parameters}
    args = [told[one.name] for one in parameters if one.kind is not one.KEYWORD_ONLY]
    kwargs = {one.name: told[one.name] for one in parameters if one.kind is one.KEYWORD_ONLY}
    getattr(journal.watched(inner), name)(*args, **kwargs)
    assert inner.heard == [(name, tuple(args), kwargs)]


@pytest.mark.parametrize("name", SHOWS)
def test_everything_that_a_trace_says_of_itself_is_the_other_ones(journal, name):
    assert getattr(journal.watched(Heard()), name) == getattr(Heard, name)


def test_an_answer_is_kept_with_its_moments_and_what_its_client_was_told(journal, clock):
    trace = journal.watched(NO_TRACE)
    clock.now_s += 0.001
    to_first_token(trace)
    assert [one.entry().request_id for one in journal.in_flight()] == ["r-1"]
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


@pytest.mark.parametrize("settled_first", [True, False])
def test_the_other_trace_and_all_that_it_holds_is_let_go_when_it_has_been_told_everything(journal, settled_first):
    inner = Heard()
    trace = journal.watched(inner)
    to_first_token(trace)
    told = [lambda: trace.settled(Usage(prompt_tokens=3, completion_tokens=2)), lambda: trace.responded(None)]
    for tell in told if settled_first else reversed(told):
        assert inner in gc.get_referents(trace)
        tell()
    assert inner not in gc.get_referents(trace)
    assert set(inner.told) >= {"settled", "responded"}
    assert last(journal).completion_tokens == 2


def test_it_stands_in_for_the_trace_that_tracing_makes(journal):
    class Tracing:
        def request(self, http):
            return NO_TRACE

    trace = journal.watched(begin(Tracing()))
    to_first_token(trace)
    trace.responded(500)
    assert last(journal).outcome == "cancelled"
