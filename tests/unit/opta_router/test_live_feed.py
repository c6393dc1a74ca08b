"""The event stream: nothing is done when nobody watches, and once for all who do."""

import json

import anyio
import pytest

from opta_router.errors import TooManyViewers
from opta_router.journal import Journal
from opta_router.live_feed import FRAME_S, MAX_VIEWERS, Feed
from opta_router.telemetry import NO_TRACE
from tests.unit.telemetry.lives import classify

pytestmark = pytest.mark.anyio


class World:
    """A feed on a clock that moves when somebody sleeps, and counts how often somebody looked."""

    def __init__(self):
        self.now_s = 50.0
        self.looks = 0
        self.stopped = False
        self.journal = Journal(lambda: self.now_s, lambda: 0.0)
        self.feed = Feed(self.look, self.journal, lambda: self.stopped, lambda: self.now_s, self.sleep)

    def look(self):
        self.looks += 1
        return json.dumps({"look": self.looks}).encode()

    async def sleep(self, seconds):
        assert seconds >= 0
        self.now_s += seconds
        await anyio.lowlevel.checkpoint()

    def request(self):
        trace = self.journal.watched(NO_TRACE)
        classify(trace)
        trace.cancelled()
        trace.responded(None)


@pytest.fixture
def world():
    return World()


def parsed(data):
    events = []
    for block in data.decode().strip().split("\n\n"):
        name, body = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(body.removeprefix("data: "))))
    return events


async def test_without_viewers_nobody_looks_whatever_happens(world):
    for _ in range(100):
        world.request()
        world.now_s += 60
    with world.feed.watched():
        pass
    assert world.looks == 0
    assert world.feed.stats() == {"viewers": 0, "frames": 0}
    assert not any(one.looked_at for one in world.journal.ended_after(0))


async def test_the_first_events_come_at_once_and_the_next_a_frame_later(world):
    begun_s = world.now_s
    with world.feed.watched() as viewer:
        assert parsed(await viewer.events()) == [("snapshot", {"look": 1})]
        assert world.now_s == begun_s
        assert parsed(await viewer.events()) == [("snapshot", {"look": 2})]
        assert world.now_s == begun_s + FRAME_S


async def test_a_frame_is_made_once_for_all_who_watch(world):
    with world.feed.watched() as one, world.feed.watched() as another:
        for frame in range(1, 6):
            begun_s = world.now_s
            first = await one.events()
            assert await another.events() is not None
            assert (world.looks, world.feed.stats()["frames"]) == (frame, frame)
            assert parsed(first) == [("snapshot", {"look": frame})]
            assert world.now_s - begun_s <= FRAME_S


async def test_who_comes_between_two_frames_gets_the_last_one_and_who_comes_later_a_new_one(world):
    with world.feed.watched() as early:
        await early.events()
    world.now_s += FRAME_S / 2
    with world.feed.watched() as soon:
        assert parsed(await soon.events()) == [("snapshot", {"look": 1})]
    world.now_s += 100
    with world.feed.watched() as late:
        assert parsed(await late.events()) == [("snapshot", {"look": 2})]


async def test_requests_that_have_ended_come_once_to_each_viewer_however_slow(world):
    world.request()
    with world.feed.watched() as quick, world.feed.watched() as slow:
        assert [name for name, _ in parsed(await quick.events())] == ["ended", "snapshot"]
        world.request()
        assert [body["seq"] for name, body in parsed(await quick.events()) if name == "ended"] == [2]
        assert [body["seq"] for name, body in parsed(await slow.events()) if name == "ended"] == [1, 2]
        assert [name for name, _ in parsed(await quick.events())] == ["snapshot"]


async def test_a_stop_of_the_router_ends_the_stream(world):
    with world.feed.watched() as viewer:
        await viewer.events()
        world.stopped = True
        assert await viewer.events() is None


async def test_viewers_are_bounded_and_leave_their_place(world):
    viewers = [world.feed.watched() for _ in range(MAX_VIEWERS)]
    for viewer in viewers:
        viewer.__enter__()
    with pytest.raises(TooManyViewers), world.feed.watched():
        pass
    viewers.pop().__exit__(None, None, None)
    with world.feed.watched():
        assert world.feed.stats()["viewers"] == MAX_VIEWERS
