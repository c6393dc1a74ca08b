"""Which requests are traced, on a clock that the test turns by hand."""

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from opta_router.telemetry.sampling import BURST_S, Sampling
from policies.schema import TelemetryConfig


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_a_swarm_is_traced_until_the_burst_is_used_up_and_then_at_the_rate(clock):
    sampling = Sampling(TelemetryConfig(max_traces_per_s=10), clock)
    burst = int(10 * BURST_S)
    assert [sampling.wants(None) for _ in range(burst + 5)] == [True] * burst + [False] * 5
    assert sampling.beyond_rate == 5
    clock.now_s += 0.35
    assert [sampling.wants(None) for _ in range(5)] == [True] * 3 + [False] * 2
    clock.now_s += 3600
    assert sum(sampling.wants(None) for _ in range(burst + 5)) == burst


def test_a_rate_of_nothing_traces_nothing(clock):
    sampling = Sampling(TelemetryConfig(max_traces_per_s=0), clock)
    clock.now_s += 3600
    assert not sampling.wants(None)


def test_who_is_not_sampled_uses_up_nothing_and_is_not_counted(clock):
    sampling = Sampling(TelemetryConfig(sample_ratio=0, max_traces_per_s=1), clock)
    assert not any(sampling.wants(None) for _ in range(100))
    assert sampling.beyond_rate == 0


def test_the_rate_holds_for_clients_whose_flag_is_trusted(clock):
    sampling = Sampling(TelemetryConfig(trust_client_sampling=True, max_traces_per_s=0.1), clock)
    sampled = SpanContext(1, 1, True, TraceFlags(TraceFlags.SAMPLED))
    assert [sampling.wants(sampled) for _ in range(3)] == [True, False, False]
