"""A small benchmark inside the running service: the same prompts with speculation and without, one at a time.

It takes its slots as any client would, under a name of its own, and waits its turn: beside work that is there anyway it
measures a busy service. ``opta-router bench matrix`` measures a service that it has for itself.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Final

import anyio
import msgspec
from msgspec import Meta

from bench.matrix_figures import (
    WAYS,
    Comparison,
    Place,
    Sample,
    SpeculativeSection,
    Turn,
    Way,
    cells,
    comparisons,
    geometric_mean,
    section,
)
from bench.prompts import CLASSES, Prompt, PromptClass, load
from bench.statistics import median
from lanes import wire
from opta_router.answer import Arrival
from opta_router.dispatch import Dispatcher
from opta_router.errors import DeadlineExceeded
from opta_router.request import GenerationRequest, SamplingParams
from opta_router.telemetry import NO_TRACE
from policies.classify import Classification
from policies.schema import Config

NAME: Final = "benchmark"
"""Its route, and what it is called beside the other clients without a key."""

RETRY_S: Final = 30


class BenchmarkRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to ask; every field has a bound. ``model``: the first one that is configured.

    ``prompts`` are taken of each class. ``timeout_s``: what was measured by then is the answer.
    """

    model: str | None = None
    lane: wire.Lane = "interactive"
    classes: Annotated[tuple[PromptClass, ...], Meta(min_length=1, max_length=4)] = CLASSES
    prompts: Annotated[int, Meta(ge=1, le=8)] = 1
    rounds: Annotated[int, Meta(ge=1, le=5)] = 1
    max_tokens: Annotated[int, Meta(ge=1, le=512)] = 48
    timeout_s: Annotated[float, Meta(gt=0, le=300)] = 60.0


class WayFigures(msgspec.Struct, frozen=True, kw_only=True):
    """With speculation, or without: medians over the answers."""

    answers: int
    tokens: int
    tokens_per_s: float
    ttft_ms: float


class BenchmarkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. ``complete`` is false if time ran out.

    ``speculative`` is of the answers that could speculate. ``speedup`` and ``ttft_ratio`` are geometric means over the
    classes; above 1 is better.
    """

    model: str
    target: str
    draft: str | None
    lane: wire.Lane
    complete: bool
    seconds: float
    speculative: SpeculativeSection
    on: WayFigures
    off: WayFigures
    speedup: float
    ttft_ratio: float
    classes: tuple[Comparison, ...]


async def run_benchmark(asked: BenchmarkRequest, model: str, config: Config, dispatcher: Dispatcher) -> BenchmarkReport:
    """Ask, and wait for the answers.

    Args:
        asked: what.
        model: of a configured one, the name.
        config: in force.
        dispatcher: of the running service.

    Raises:
        RouterError: an answer was refused or failed, as a client's would be; or there was no time for any.
    """
    started_s = time.monotonic()
    runner = _Runner(asked, model, config, dispatcher)
    with anyio.move_on_after(asked.timeout_s) as limit:
        await runner.run()
    if not runner.compared:
        raise DeadlineExceeded(f"no prompt was answered both ways within {asked.timeout_s:g} s", retry_after_s=RETRY_S)
    spec = next(entry for entry in config.models if entry.name == model)
    samples = runner.compared
    found = comparisons(samples)
    return BenchmarkReport(
        model=model,
        target=spec.target,
        draft=spec.draft,
        lane=asked.lane,
        complete=not limit.cancelled_caught,
        seconds=round(time.monotonic() - started_s, 2),
        speculative=section([said for sample in samples if sample.way == "on" for said in sample.speculative]),
        on=_figures(samples, "on"),
        off=_figures(samples, "off"),
        speedup=round(geometric_mean([one.speedup for one in found]), 3),
        ttft_ratio=round(geometric_mean([one.ttft_ratio for one in found]), 3),
        classes=tuple(found),
    )


class _Runner:
    def __init__(self, asked: BenchmarkRequest, model: str, config: Config, dispatcher: Dispatcher) -> None:
        self._asked = asked
        self._model = model
        self._config = config
        self._dispatcher = dispatcher
        self._questions = 0
        self.samples: list[Sample] = []

    @property
    def compared(self) -> list[Sample]:
        """What was asked both ways."""
        keys = Counter((sample.place, sample.round, sample.number) for sample in self.samples)
        return [one for one in self.samples if keys[one.place, one.round, one.number] == len(WAYS)]

    async def run(self) -> None:
        prompts = load(self._asked.classes)
        for number in range(self._asked.rounds):
            for name in self._asked.classes:
                place = Place(model=self._model, prompts=name, lane=self._asked.lane)
                for at, prompt in enumerate(prompts[name][: self._asked.prompts]):
                    for way in WAYS if (number + at) % 2 else WAYS[::-1]:
                        turn = Turn(place=place, way=way, round=number, number=at)
                        self.samples.append(await self._answered(turn, prompt))

    async def _answered(self, turn: Turn, prompt: Prompt) -> Sample:
        asked_s, pieces = self._dispatcher.now_s(), list[str]()
        async with self._dispatcher.answer(self._arrival(prompt, turn.way, asked_s)) as answer:
            await answer.started()
            while (text := await answer.text()) is not None:
                pieces.append(text)
        if answer.ending is None:
            raise RuntimeError("the answer has not ended")
        wall_s = self._dispatcher.now_s() - asked_s
        report = answer.ending.opta
        return Sample(
            **msgspec.structs.asdict(turn),
            wall_s=wall_s,
            tokens=answer.ending.finished.completion_tokens,
            ttfts_ms=(report.ttft_ms or 1000 * wall_s,),
            texts=("".join(pieces),),
            speculative=(report.speculative,),
        )

    def _arrival(self, prompt: Prompt, way: Way, asked_s: float) -> Arrival:
        request = GenerationRequest(
            operation="chat" if prompt.messages else "text_completion",
            model=self._model,
            prompt=self._unlike_any_other(prompt),
            max_tokens=self._asked.max_tokens,
            sampling=SamplingParams(temperature=0.0),
            num_draft_tokens=0 if way == "off" else None,
        )
        return Arrival(
            request=request,
            config=self._config,
            verdict=Classification(model=self._model, lane=self._asked.lane, route=NAME),
            sub_client=NAME,
            trace=NO_TRACE,
            arrived_s=asked_s,
        )

    def _unlike_any_other(self, prompt: Prompt) -> wire.Prompt:
        """With a first line of its own, so that no cache of an earlier answer helps one way and not the other."""
        self._questions += 1
        line = f"# {time.monotonic_ns() % 10**9:09d} {self._questions:03d}\n"
        if prompt.text is not None:
            return wire.TextPrompt(line + prompt.text)
        first, *others = prompt.messages
        messages = [wire.ChatMessage(first.role, line + first.content)]
        return wire.ChatPrompt((*messages, *(wire.ChatMessage(one.role, one.content) for one in others)))


def _figures(samples: list[Sample], way: Way) -> WayFigures:
    found = [cell for cell in cells(samples) if cell.way == way]
    return WayFigures(
        answers=sum(cell.answers for cell in found),
        tokens=sum(cell.tokens for cell in found),
        tokens_per_s=median([cell.tokens_per_s for cell in found]),
        ttft_ms=median([cell.ttft_ms for cell in found]),
    )
