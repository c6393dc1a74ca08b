"""A host that says anything at all: its link is dropped, and that is the worst that happens to the router."""

import random
import socket
from contextlib import suppress

import anyio
import pytest
from anyio.abc import UNIXSocketStream

from lanes import framing, wire
from lanes.client import Generation, Link
from lanes.errors import WireError

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

SUBMIT = wire.Submit("a", "m", "interactive", wire.TextPrompt("x"), 1 << 20, wire.Sampling())
COUNTERS = wire.SpecCounters(1, 4, 2, 1, 1)
SAID = [
    wire.Ready(),
    wire.ModelFailed("m", "why"),
    wire.Stats(1, {"interactive": wire.LaneStats(1.0, 2, 3)}, 4, 5),
    wire.Events((wire.Started("a", 3), wire.Delta("a", 0, (5, 6), "h\u00e9", COUNTERS))),
    wire.Events((wire.Moved("a", "throughput", 2), wire.Finished("a", "stop", 3, 2, speculative=COUNTERS))),
    wire.Events((wire.Failed("a", "engine_error", "why"),)),
]


@pytest.fixture
def anyio_backend():
    return "asyncio"


def broken(chance):
    """A frame with some of its bytes changed, cut out, or doubled."""
    frame = bytearray(framing.encode(chance.choice(SAID)))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(frame)) if frame else 0
        match chance.randrange(4):
            case 0 if frame:
                frame[at] = chance.randrange(256)
            case 1:
                del frame[at : at + chance.randrange(1, 5)]
            case 2:
                frame[at:at] = frame[at : at + chance.randrange(1, 9)]
            case 3:
                frame[4:] = chance.randbytes(len(frame[4:]))
    return bytes(frame)


@pytest.mark.parametrize("frames", [20_000, pytest.param(1_000_000, marks=pytest.mark.chaos)])
def test_a_frame_that_is_not_one_of_ours_is_an_error_of_ours(frames):
    chance = random.Random(34)
    refused = 0
    for _ in range(frames):
        reader = framing.FrameReader(wire.FromHost)
        try:
            for message in reader.feed(broken(chance)):
                assert isinstance(message, wire.Message)
        except WireError:
            refused += 1
    assert refused > frames / 2


@pytest.mark.parametrize("links", [200, pytest.param(20_000, marks=pytest.mark.chaos)])
async def test_a_link_on_which_anything_is_said_ends_in_order_and_its_request_ends_once_or_is_free_to_go(links):
    chance = random.Random(35)
    kept = 0
    for _ in range(links):
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        async with await UNIXSocketStream.from_socket(ours) as stream:
            ends = []
            link = Link(stream, on_message=lambda message: None, on_settled=lambda generation: None)
            generation = Generation(SUBMIT, ends.append)
            link.begin(generation)
            with theirs:
                theirs.sendall(b"".join(broken(chance) for _ in range(chance.randrange(1, 6))))
            with anyio.fail_after(30):
                with suppress(WireError):
                    await link.run()
            lost = link.close()
            assert (lost, len(ends)) in (([generation], 0), ([], 1))
            kept += len(lost)
    assert kept > 0
