"""The questions of ``bench matrix``, asked over HTTP as any client would."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

import anyio
import httpx
import msgspec

from bench.client import Completion, complete
from bench.load import Agents, Caller, prompts
from bench.matrix_figures import WAYS, Place, Sample, Turn, Way
from bench.matrix_plan import LANES, Plan
from bench.prompts import Prompt, PromptClass, load
from lanes.wire import Lane
from opta_router.request import SpeculativeReport

BACKGROUND_PROMPT_TOKENS: Final = (50, 300)
BACKGROUND_TOKENS: Final = 128
SETTLE_S: Final = 5.0
WARM_UP_TOKENS: Final = 4


class Measurement:
    """One model of a running service.

    Args:
        client: of the service.
        model: as the service calls it.
        plan: what to ask.
    """

    def __init__(self, client: httpx.AsyncClient, model: str, plan: Plan) -> None:
        self._client = client
        self._model = model
        self._plan = plan
        self._prompts = load(plan.classes)

    async def samples(self) -> list[Sample]:
        """Everything that the plan asks, each round over all places before the next."""
        started_s = time.perf_counter()

        def tell(what: str) -> None:
            print(f"{self._model}: {what}, {time.perf_counter() - started_s:.0f} s", file=sys.stderr, flush=True)

        await self._warm_up()
        tell("warm")
        found: list[Sample] = []
        for number in range(self._plan.rounds):
            found += [sample async for sample in self._round_of_all(number)]
            tell(f"round {number + 1} of {self._plan.rounds}")
        found += await self._beside_background()
        tell("done")
        return found

    async def one_by_one(self) -> AsyncIterator[Sample]:
        """What the plan asks without a background, as the answers come."""
        for number in range(self._plan.rounds):
            async for sample in self._round_of_all(number):
                yield sample

    async def _round_of_all(self, number: int) -> AsyncIterator[Sample]:
        for place in self.places():
            async for sample in self._round(place, number):
                yield sample

    def places(self) -> list[Place]:
        """Where speculation is compared with plain decoding."""
        return [
            Place(model=self._model, prompts=name, lane=lane, concurrency=concurrency)
            for lane in LANES
            for concurrency in self._plan.at_once(lane)
            for name in self._plan.of_lane(lane)
        ]

    async def _warm_up(self) -> None:
        """Load the model, compile, fill pools: everything that is measured later, once and short."""
        for place in self.places():
            for way in WAYS:
                group = next(_groups(self._taken(place.prompts), place.concurrency))
                await self._sample(Turn(place=place, way=way, round=-1, number=0), group, WARM_UP_TOKENS)

    async def _round(self, place: Place, number: int) -> AsyncIterator[Sample]:
        for at, group in enumerate(_groups(self._taken(place.prompts), place.concurrency)):
            ways = WAYS if (number + at) % 2 else WAYS[::-1]  # neither always has the other's warm caches
            for way in ways:
                turn = Turn(place=place, way=way, round=number, number=at)
                yield await self._sample(turn, group, self._plan.max_tokens)

    async def _beside_background(self) -> list[Sample]:
        plan, found = self._plan, list[Sample]()
        if not plan.background:
            return found
        name = plan.classes[0]
        working = Caller(
            client=self._client,
            model=self._model,
            headers={"x-opta-lane": "throughput"},
            prompts=prompts(BACKGROUND_PROMPT_TOKENS, f"matrix {plan.seed}"),
            max_tokens=BACKGROUND_TOKENS,
            temperature=0.7,
        )
        async with Agents(working, plan.background) as agents:
            await agents.settled(SETTLE_S)
            for number in range(plan.busy_rounds):
                for at, prompt in enumerate(self._taken(name)[: plan.busy_prompts]):
                    for lane in LANES if (number + at) % 2 else LANES[::-1]:
                        place = Place(model=self._model, prompts=name, lane=lane, background=plan.background)
                        turn = Turn(place=place, way="on", round=number, number=at)
                        found.append(await self._sample(turn, [prompt], plan.busy_tokens))
        return found

    def _taken(self, name: PromptClass) -> Sequence[Prompt]:
        return self._prompts[name][: self._plan.prompts or None]

    async def _sample(self, turn: Turn, group: Sequence[Prompt], max_tokens: int) -> Sample:
        started_s = time.perf_counter()
        answers = [Completion(started_s) for _ in group]
        async with anyio.create_task_group() as tg:
            for prompt, answer in zip(group, answers, strict=True):
                tg.start_soon(self._ask, prompt, turn.place.lane, turn.way, answer, max_tokens)
        return Sample(
            **msgspec.structs.asdict(turn),
            wall_s=max(answer.ended_s or 0.0 for answer in answers) - started_s,
            tokens=sum(answer.tokens or 0 for answer in answers),
            ttfts_ms=tuple(1000 * (answer.ttft_s or (answer.ended_s or 0.0) - started_s) for answer in answers),
            texts=tuple(answer.text for answer in answers),
            speculative=tuple(_report(answer) for answer in answers),
        )

    async def _ask(self, prompt: Prompt, lane: Lane, way: Way, into: Completion, max_tokens: int) -> None:
        asked = {"messages": prompt.chat()} if prompt.messages else {"prompt": prompt.text}
        body: dict[str, Any] = {
            "model": self._model,
            **asked,
            "max_tokens": max_tokens,
            "temperature": self._plan.temperature,
            "top_p": 1.0,
            "seed": self._plan.seed,
            "stream_options": {"include_usage": True},
            **({"num_draft_tokens": 0} if way == "off" else {}),
        }
        await complete(self._client, body, {"x-opta-lane": lane}, into)


def _groups(taken: Sequence[Prompt], concurrency: int) -> Iterator[list[Prompt]]:
    """All prompts, so many at a time; the last group is filled up from the beginning."""
    for start in range(0, len(taken), concurrency):
        yield [taken[at % len(taken)] for at in range(start, start + concurrency)]


def _report(answer: Completion) -> SpeculativeReport:
    if answer.opta is None:
        raise RuntimeError("the service said nothing of the answer's speculation")
    return msgspec.convert(answer.opta["speculative"], SpeculativeReport)
