"""A dispatcher, over a real link to a host that the test plays."""

import asyncio
import socket
from contextlib import asynccontextmanager

import anyio
from anyio.abc import UNIXSocketStream

from lanes import framing, wire
from lanes.client import Generation, Link
from lanes.pairs import PairPolicy, Pairs
from opta_router import errors
from opta_router.answer import Arrival
from opta_router.dispatch import Dispatcher
from opta_router.request import GenerationRequest
from opta_router.telemetry import RequestTrace
from policies.classify import Classification
from policies.schema import (
    Config,
    InteractiveLane,
    LanesConfig,
    ModelConfig,
    ThroughputLane,
)

SPEC = wire.ModelSpec("m", "t", "d")
INFO = wire.ModelInfo("m", "t", None, 2048, 100, 1, 0, 0.1)
FACTS = wire.PairFacts(
    2048,
    1,
    0,
    0,
    2,
    0,
    same_vocabulary=True,
    same_template=True,
    cache_trimmable=True,
    paths=(wire.CallPath("interactive", "rounds"),),
)


def pairs_with(facts):
    """A pair that is resident, as a host would have it."""
    pairs = Pairs((SPEC,), PairPolicy())
    pairs.host_started(0, lambda message: None, lambda: None)
    pairs.received(wire.ModelPrepared("m", facts))
    pairs.received(wire.ModelLoaded(INFO))
    return pairs


class LinkedEngine:
    """What :class:`opta_router.engine.Engine` asks for, on one link."""

    def __init__(self, link):
        self.link = link
        self.pairs = pairs_with(FACTS)
        self.stats = None
        self.memory_bytes = 1000
        self.reasons = []
        self.refusal = None
        self.after_end = lambda: None

    def submit(self, submit, on_end, on_progress=None, on_interruption=None):
        def ended(event):
            on_end(event)
            self.after_end()

        if self.refusal is not None:
            raise self.refusal
        generation = Generation(submit, ended, on_progress, on_interruption)
        self.link.begin(generation)
        return generation

    def not_ready_reasons(self):
        return self.reasons

    def refusals(self):
        return self.reasons


class Host:
    """The host's end of the link."""

    def __init__(self, stream):
        self._stream = stream
        self._reader = framing.FrameReader(wire.ToHost)
        self._heard = []

    async def hears(self):
        while not self._heard:
            self._heard += self._reader.feed(await self._stream.receive())
        return self._heard.pop(0)

    async def says(self, *events):
        await self._stream.send(framing.encode(wire.Events(events)))

    async def dies(self):
        await self._stream.aclose()


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Router:
    def __init__(self, configuration, dispatcher, engine, host, clock, tg):
        self.dispatcher, self.engine, self.host, self.clock, self._tg = dispatcher, engine, host, clock, tg
        self.configuration = configuration

    def ask(self, **arrival):
        return Asked(self.dispatcher, self._tg, {"configuration": self.configuration, **arrival})

    async def asks(self, **arrival):
        """A request that the host has heard of."""
        asked = self.ask(**arrival)
        return asked, await self.host.hears()

    def in_lane(self, lane="interactive"):
        """Slots in use and requests waiting; the books balance."""
        self.dispatcher._admission.check_integrity()
        stats = self.dispatcher.stats()[lane]
        return stats.active, stats.queued


class Asked:
    """One request in a task of its own, which can be cancelled as a client that leaves would."""

    def __init__(self, dispatcher, tg, arrival):
        self.texts = []
        self.answer = None
        self.error = None
        self.over = anyio.Event()
        self.offered = anyio.Event()
        self.scope = anyio.CancelScope()
        self._dispatcher = dispatcher
        self._arrival = an_arrival(dispatcher, Offered(self.offered), **arrival)
        tg.start_soon(self._run)

    async def _run(self):
        self.task = asyncio.current_task()
        try:
            with self.scope:
                async with self._dispatcher.answer(self._arrival) as answer:
                    self.answer = answer
                    await answer.started()
                    while (text := await answer.text()) is not None:
                        self.texts.append(text)
        except errors.RouterError as error:
            self.error = error
        finally:
            self.over.set()


class Offered(RequestTrace):
    """Says when the request was offered to admission."""

    def __init__(self, event):
        self._event = event

    def queued(self):
        self._event.set()


def an_arrival(dispatcher, offered, *, trace=None, configuration=None, lane="interactive", preset=None, **request):
    return Arrival(
        config=configuration or config(),
        request=GenerationRequest(operation="chat", model="m", prompt=wire.TextPrompt("x"), **request),
        verdict=Classification(model="m", lane=lane, route="default", preset=preset),
        sub_client="",
        trace=trace or offered,
        arrived_s=dispatcher.now_s(),
    )


def config(**changes):
    lanes = LanesConfig(interactive=InteractiveLane(**changes), throughput=ThroughputLane(max_active=1, max_queue=1))
    return Config(models=(ModelConfig(name="m", target="t"),), lanes=lanes)


@asynccontextmanager
async def routing(configuration=None):
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    clock = Clock()
    async with (
        await UNIXSocketStream.from_socket(ours) as router_end,
        await UNIXSocketStream.from_socket(theirs) as host_end,
        anyio.create_task_group() as tg,
    ):
        engine = LinkedEngine(a_link(router_end))
        tg.start_soon(engine.link.run)
        configuration = configuration or config()
        dispatcher = Dispatcher(configuration, engine, clock)
        with anyio.fail_after(20):
            yield Router(configuration, dispatcher, engine, Host(host_end), clock, tg)
        tg.cancel_scope.cancel()


def a_link(stream):
    return Link(stream, on_message=lambda message: None, on_settled=lambda generation: None)


@asynccontextmanager
async def replaced(router):
    """The host dies; what it worked on goes on on another, which is the block's."""
    await router.host.dies()
    while not router.engine.link.closed:
        await anyio.wait_all_tasks_blocked()
    lost = router.engine.link.close()
    for generation in lost:
        generation.lost(on_trial=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    async with (
        await UNIXSocketStream.from_socket(ours) as router_end,
        await UNIXSocketStream.from_socket(theirs) as host_end,
        anyio.create_task_group() as tg,
    ):
        router.engine.link, router.host = a_link(router_end), Host(host_end)
        tg.start_soon(router.engine.link.run)
        for generation in lost:
            if not generation.ended:
                router.engine.link.begin(generation)
        yield
        tg.cancel_scope.cancel()


def ended(submit, reason="stop", tokens=1, **fields):
    return wire.Finished(submit.request_id, reason, 1, tokens, **fields)


def delta(submit, index, text):
    return wire.Delta(submit.request_id, index, (index,), text)


async def an_answer_that_outlives_its_budget(router, **arrival):
    asked, submit = await router.asks(lane="auto", max_tokens=50, **arrival)
    await router.host.says(wire.Started(submit.request_id, 1), delta(submit, 0, "a"), delta(submit, 1, "b"))
    return asked, submit
