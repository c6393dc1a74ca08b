"""What ``bench connections`` takes for a leak, and what for noise."""

import msgspec
import pytest

from bench.connections import Load, Round, Snapshot, bars
from bench.router_memory import held

LOAD = Load()
NOTHING = Snapshot(
    active=0,
    queued=0,
    on_device=0,
    router_descriptors=12,
    host_descriptors=7,
    router_blocks=200_000,
    router_malloc_kib=9_800,
    router_kib=66_000,
    host_kib=49_000,
)


def grown(**fields):
    values = {name: getattr(NOTHING, name) for name in NOTHING.__struct_fields__}
    return Snapshot(**{**values, **{name: values[name] + by for name, by in fields.items()}})


def rounds(**left):
    """Rounds; for each name what the router has more of after each of them."""
    peak = grown(active=8, queued=192)
    ends = [{name: sum(each[: number + 1]) for name, each in left.items()} for number in range(LOAD.rounds)]
    starts = [dict.fromkeys(left, 0), *ends]
    return [
        Round(start=grown(**start), idle=NOTHING, peak=peak, end=grown(**end), answered=150)
        for start, end in zip(starts, ends, strict=False)
    ]


def broken(**left):
    return [bar.promise for bar in bars(rounds(**left), LOAD) if not bar.kept]


@pytest.mark.parametrize(
    "noise",
    [
        {},
        {"router_blocks": [800, 160, 37, 0, -2, 43, 1, 5], "router_malloc_kib": [317, 7, 4, 4, 0, 5, 1, 1]},
        {"router_kib": [11_432, 1_032, 0, 2_668, 0, 0, 1_044, 0]},
        {"host_kib": [70, 0, 1_044, 0, 8, 0, 0, 0]},
    ],
    ids=["nothing", "caches that fill", "the router takes memory at one peak", "the host does"],
)
def test_what_a_round_brings_once_is_no_leak(noise):
    assert broken(**noise) == []


@pytest.mark.parametrize(
    ("leak", "promise"),
    [
        ({"router_blocks": [LOAD.vanishing] * 8}, "objects left in the router by a client that vanished"),
        ({"router_blocks": [LOAD.idle] * 8}, "objects left in the router by a client that vanished"),
        ({"router_malloc_kib": [LOAD.vanishing * 512 // 1024] * 8}, "bytes of the C library left by it"),
        ({"router_kib": [LOAD.idle // 4] * 8}, "KiB by which the router grew in a round"),
        ({"host_kib": [LOAD.waiting] * 8}, "KiB by which the host grew in a round"),
        ({"router_descriptors": [0, 0, 0, 0, 0, 0, 0, 1]}, "router descriptors left behind"),
    ],
)
def test_what_every_client_leaves_is_a_leak(leak, promise):
    assert broken(**leak) == [promise]


def test_what_the_c_library_does_not_say_is_not_promised():
    unknown = [
        msgspec.structs.replace(each, end=msgspec.structs.replace(each.end, router_malloc_kib=None))
        for each in rounds()
    ]
    assert len(bars(unknown, LOAD)) == len(bars(rounds(), LOAD)) - 1


def test_what_a_process_holds_is_counted_to_the_object():
    before = held()
    kept = [[] for _ in range(10_000)]
    small = held()
    # Other threads of pytest's process let go of a few blocks meanwhile.
    assert 9_900 <= small.blocks - before.blocks < 11_000
    if before.malloc_bytes is not None:
        kept.append([bytes(100_000) for _ in range(100)])
        assert 10_000_000 <= held().malloc_bytes - small.malloc_bytes < 11_000_000
    kept.clear()
    assert held().blocks - before.blocks < 1_000
