"""What requests come to, told as they happen."""

import threading

import pytest

from opta_router.request import Usage
from opta_router.telemetry import NO_TRACE, names
from opta_router.telemetry.histograms import Histogram
from opta_router.telemetry.metered import MeteredTrace
from opta_router.telemetry.tally import Tally
from tests.unit.telemetry import lives


@pytest.fixture
def tally():
    return Tally(["opta-tiny"])


def counted(counts):
    """Without those at zero."""
    return {labels: count for labels, count in counts.items() if count}


def values(tally, metric):
    (histogram,) = [found for found in tally.histograms() if found.metric is metric]
    return {labels: sum(buckets.counts) for labels, buckets in histogram.in_use()}


def test_an_answer_is_counted_once_with_its_tokens(tally):
    trace = MeteredTrace(tally, NO_TRACE)
    lives.to_first_token(trace)
    trace.settled(lives.usage(lives.ending()))
    trace.finished(lives.ending())
    trace.responded(200)
    totals = tally.reading()
    assert counted(totals.requests) == {("interactive", "opta-tiny", "ok", "stop"): 1}
    assert counted(totals.tokens) == {
        ("interactive", "opta-tiny", "input"): 12,
        ("interactive", "opta-tiny", "output"): 34,
    }
    served = ("chat", "opta_router", "opta-tiny", "interactive")
    assert values(tally, names.REQUEST_DURATION) == {(*served, None): 1}
    assert values(tally, names.TIME_TO_FIRST_TOKEN) == values(tally, names.TIME_PER_OUTPUT_TOKEN) == {served: 1}
    assert values(tally, names.QUEUE_DURATION) == {("interactive",): 1}


def test_what_a_configured_model_counts_is_there_at_zero_from_the_start(tally):
    totals = tally.reading()
    assert set(totals.tokens.values()) == set(totals.requests.values()) == {0}
    assert {lane for lane, _, _ in totals.tokens} == {"interactive", "throughput"}


@pytest.mark.parametrize(
    ("tell", "status", "outcome"),
    [
        (lambda trace: trace.failed("queue_full"), 429, ("rejected", "queue_full")),
        (lambda trace: trace.failed("draining"), 503, ("rejected", "draining")),
        (lambda trace: trace.failed("context_length_exceeded"), 400, ("invalid", "context_length_exceeded")),
        (lambda trace: trace.failed("engine_error"), 500, ("failed", "engine_error")),
        (lambda trace: trace.failed("engine_died"), 200, ("failed", "engine_died")),  # in-band
        (lambda trace: trace.cancelled(), None, ("cancelled", "cancelled")),
        (lambda trace: None, 500, ("failed", "internal_error")),
    ],
)
def test_an_end_that_is_no_answer_is_counted_by_whose_it_is(tally, tell, status, outcome):
    trace = MeteredTrace(tally, NO_TRACE)
    lives.classify(trace)
    tell(trace)
    trace.responded(status)
    assert counted(tally.reading().requests) == {("auto", "opta-tiny", *outcome): 1}
    error = None if outcome[0] == "cancelled" else outcome[1]
    assert values(tally, names.REQUEST_DURATION) == {("chat", "opta_router", "opta-tiny", "auto", error): 1}
    for metric in (names.TIME_TO_FIRST_TOKEN, names.TIME_PER_OUTPUT_TOKEN, names.QUEUE_DURATION):
        assert values(tally, metric) == {}


def test_the_first_end_that_is_told_is_the_one_that_counts(tally):
    trace = MeteredTrace(tally, NO_TRACE)
    lives.classify(trace)
    trace.cancelled()
    trace.failed("internal_error")
    trace.responded(None)
    assert counted(tally.reading().requests) == {("auto", "opta-tiny", "cancelled", "cancelled"): 1}


def test_who_cannot_be_understood_is_counted_and_has_no_duration(tally):
    trace = MeteredTrace(tally, NO_TRACE)
    trace.failed("invalid_json")
    trace.responded(400)
    assert counted(tally.reading().requests) == {(names.NO_LANE, names.NO_MODEL, "invalid", "invalid_json"): 1}
    assert values(tally, names.REQUEST_DURATION) == {}


def test_tokens_of_an_answer_that_moved_are_each_lanes_own(tally):
    trace = MeteredTrace(tally, NO_TRACE)
    lives.to_first_token(trace)
    trace.demoted("throughput", 20)
    trace.settled(Usage(prompt_tokens=12, completion_tokens=34))
    assert counted(tally.reading().tokens) == {
        ("interactive", "opta-tiny", "input"): 12,
        ("interactive", "opta-tiny", "output"): 20,
        ("throughput", "opta-tiny", "output"): 14,
    }


def test_a_client_that_left_is_charged_when_the_host_lets_go(tally):
    trace = MeteredTrace(tally, NO_TRACE)
    lives.to_first_token(trace)
    trace.cancelled()
    trace.responded(200)
    trace.settled(Usage(prompt_tokens=12, completion_tokens=5))
    trace.settled(Usage(prompt_tokens=12, completion_tokens=5))
    assert tally.reading().tokens["interactive", "opta-tiny", "output"] == 5


def test_tokens_under_way_are_seen_and_never_taken_back(tally):
    emitted = 0

    def used():
        return Usage(prompt_tokens=12, completion_tokens=emitted)

    stop, seen = threading.Event(), []

    def collect():
        while not stop.is_set():
            seen.append(tally.reading().tokens["interactive", "opta-tiny", "output"])

    collector = threading.Thread(target=collect)
    collector.start()
    for _ in range(200):
        trace = MeteredTrace(tally, NO_TRACE)
        lives.classify(trace)
        trace.admitted("interactive", "default")
        emitted = 0
        trace.dispatched(used)
        for emitted in range(1, 6):
            assert tally.reading().tokens["interactive", "opta-tiny", "output"] % 5 == emitted % 5
        trace.settled(used())
    stop.set()
    collector.join()
    assert tally.reading().tokens["interactive", "opta-tiny", "output"] == 1000
    assert seen == sorted(seen)


def test_a_value_on_a_bound_belongs_below_it():
    buckets = Histogram(names.QUEUE_DURATION).of("interactive")
    for value in (0.0005, 0.001, 0.0011, 1e6):
        buckets.record(value, None)
    assert (buckets.counts[0], buckets.counts[1], buckets.counts[-1]) == (2, 1, 1)
