"""A sequence that ends takes nobody's memory away."""

import mlx.core as mx
import pytest
from vllm_mlx import scheduler

from lanes.engines import buffers
from lanes.engines.base import SequenceSpec
from lanes.engines.throughput import ThroughputEngine
from lanes.testing import GREEDY, NO_EOS, Driver


@pytest.fixture
def given_back(monkeypatch):
    calls = []
    monkeypatch.setattr(mx, "clear_cache", lambda: calls.append("clear_cache"))
    return calls


def run_to_the_end_of(pair, held_out):
    driver = Driver(ThroughputEngine(pair.target, NO_EOS, 4))
    for number in range(3):
        driver.add(SequenceSpec(str(number), held_out[number], 12 * (number + 1), GREEDY))
    driver.finish()


def test_a_scheduler_gives_no_free_memory_back(pair, held_out, given_back):
    run_to_the_end_of(pair, held_out)
    assert given_back == []


def test_it_would(pair, held_out, given_back, monkeypatch):
    monkeypatch.setattr(scheduler, "mx", mx)
    run_to_the_end_of(pair, held_out)
    assert given_back


def test_what_is_kept_has_a_limit(monkeypatch):
    limits = []
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    buffers.keep(1 << 30)
    buffers.keep(None)
    assert limits == [int(buffers.SHARE * (1 << 30))]
