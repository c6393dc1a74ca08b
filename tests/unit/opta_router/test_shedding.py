"""When new requests are turned away for the device's memory."""

import pytest

from opta_router.shedding import memory_shortage
from policies.quantities import MemoryAmount

GIB = 1 << 30


@pytest.mark.parametrize(
    ("used", "device", "running", "short"),
    [
        (12 * GIB, 16 * GIB, 1, True),
        (16 * GIB, 16 * GIB, 9, True),
        (12 * GIB - 1, 16 * GIB, 9, False),
        (16 * GIB, 16 * GIB, 0, False),  # nothing ends that would give memory back
        (16 * GIB, 0, 9, False),
    ],
)
def test_from_the_share_on_nothing_new_is_taken_while_something_runs(used, device, running, short):
    said = memory_shortage(used, device, MemoryAmount(fraction=0.75), running=running)
    assert (said is not None) is short


def test_the_reason_has_the_numbers():
    assert memory_shortage(15 * GIB, 16 * GIB, MemoryAmount(size_bytes=14 * GIB), running=1) == (
        "15 GiB of the device's 16 GiB of memory are in use, and from 14 GiB on (memory.shed) nothing new is taken"
    )
