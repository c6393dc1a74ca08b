"""What a supervisor decides without a host."""

from itertools import accumulate

from lanes.supervisor import BACKOFF_S


def test_a_host_that_never_becomes_ready_is_started_five_times_a_minute_at_most():
    starts_s = list(accumulate([*BACKOFF_S, *[BACKOFF_S[-1]] * 20]))
    for first, sixth in zip(starts_s, starts_s[5:], strict=False):
        assert sixth - first >= 60
    assert BACKOFF_S[0] == 0  # one that was ready is replaced at once
