"""``bench recovery``: a draft that guesses badly is switched off, costs nothing then, and a good one comes back.

A service has the embedded target with a draft whose rows were shuffled. It is asked until
``speculation.min_acceptance`` switches the pair off; then the same prompts with speculation left to the service and
switched off by the request, in turn. Then the draft's own weights are put in place and the model is loaded again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import msgspec

from bench import servers
from bench.confused import straighten
from bench.matrix_figures import Sample, SpeculativeSection, comparisons, geometric_mean, section
from bench.matrix_measure import Measurement
from bench.matrix_plan import Plan
from bench.reporting import Bar, add_save, at_least, at_most, machine, markdown, print_bars, save
from policies.schema import SpeculationConfig

MODEL: Final = "pair"
WINDOW_TOKENS: Final = SpeculationConfig().acceptance_window
KEPT: Final = 0.97
MOST_PASSES: Final = 40
LOAD_TIMEOUT_S: Final = 60.0


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the run. ``tokens_ratio``: tokens/s with speculation left to the service : with it switched off.

    ``compared``: draft tokens before the answer that changed the gate; None where it did not change.
    """

    name: str
    answers: int
    compared: int | None
    tokens_ratio: float
    speculative: SpeculativeSection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--prompts", type=int, default=3, help="of each class")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    add_save(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; returns 0 if the promises were kept."""
    plan = Plan(
        profile="own",
        prompts=arguments.prompts,
        rounds=arguments.rounds,
        max_tokens=arguments.tokens,
        interactive=(1,),
        throughput=(),
        background=0,
    )
    phases = measure(plan)
    promises = bars(phases)
    print(f"{machine()}\n\n{table(phases)}\n")
    save(arguments.save, {"plan": plan, "phases": phases, "bars": promises})
    return print_bars(promises)


def measure(plan: Plan) -> list[Phase]:
    """Blocks until done."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        draft, config = Path(scratch) / "draft", Path(scratch) / "opta.yaml"
        subprocess.run([sys.executable, "-m", "bench.confused", str(draft)], check=True)
        pair = {"target": "embedded:target", "draft": str(draft)}
        settings = {
            "models": [{"name": MODEL, **pair, "preload": True}],
            "speculation": {"approved": [{**pair, "evidence": "under measurement"}], "retry_after": "1h"},
        }
        config.write_bytes(msgspec.json.encode(settings))
        return anyio.run(_measure, config, draft, plan)


async def _measure(config: Path, draft: Path, plan: Plan) -> list[Phase]:
    async with servers.running(servers.opta_router(config, MODEL)) as client:
        one_round = Measurement(client, MODEL, msgspec.structs.replace(plan, rounds=1))
        whole = Measurement(client, MODEL, plan)
        bad = await _until(client, one_round, "off")
        off = _phase("switched off", await whole.samples())
        straighten(draft)
        for action in ("unload", "load"):
            await _settled(client, action)
        back = await _until(client, one_round, "on")
        return [
            _changed("a bad draft", bad),
            off,
            _changed("a good one, tried", back),
            _phase("on again", await whole.samples()),
        ]


async def _until(client: httpx.AsyncClient, measurement: Measurement, state: str) -> list[Sample]:
    """Ask until the gate is in that state; the last answer is the one that put it there.

    Raises:
        RuntimeError: it does not get there.
    """
    found: list[Sample] = []
    for _ in range(MOST_PASSES):
        async for sample in measurement.one_by_one():
            found.append(sample)
            if (await _model(client, "speculation"))["gate"]["state"] == state:
                return found
    raise RuntimeError(f"the gate is not {state} after {len(found)} answers")


async def _model(client: httpx.AsyncClient, field: str) -> Any:
    return (await client.get("/admin/models")).raise_for_status().json()["models"][0][field]


async def _settled(client: httpx.AsyncClient, action: str) -> None:
    (await client.post(f"/admin/models/{MODEL}/{action}")).raise_for_status()
    with anyio.fail_after(LOAD_TIMEOUT_S):
        while await _model(client, "state") not in {"absent", "resident"}:  # noqa: ASYNC110 - another process has no event
            await anyio.sleep(0.05)


def _phase(name: str, samples: Sequence[Sample], compared: int | None = None) -> Phase:
    reports = [report for sample in samples if sample.way == "on" for report in sample.speculative]
    return Phase(
        name=name,
        answers=len(reports),
        compared=compared,
        tokens_ratio=round(geometric_mean([one.speedup for one in comparisons(samples)]), 3),
        speculative=section(reports),
    )


def _changed(name: str, samples: Sequence[Sample]) -> Phase:
    before = section([report for sample in samples[:-1] if sample.way == "on" for report in sample.speculative])
    drafted = before.proposers.get("draft_model")  # the text's own proposals are no fault of the draft
    return _phase(name, samples, drafted.accepted + drafted.rejected if drafted is not None else 0)


def bars(phases: Sequence[Phase]) -> list[Bar]:
    """What a bad draft may cost."""
    bad, off, _, back = phases
    low = off.speculative.reasons.get("low_acceptance", 0)
    return [
        at_most("draft tokens compared before a bad draft's last answer", bad.compared or 0, WINDOW_TOKENS),
        at_least("answers that say low_acceptance, of those after it", low / off.answers, 1.0),
        at_least("tokens/s after it : plain", off.tokens_ratio, KEPT),
        at_least("answers that speculate with a good draft", float(back.speculative.active), 1.0),
        at_least("tokens/s with a good draft : plain", back.tokens_ratio, 1.0),
    ]


def table(phases: Sequence[Phase]) -> str:
    """A row for each phase."""
    columns = ("", "answers", "reasons", "acceptance", "accepted", "rejected", "ignored", "tokens/s on : off")
    rows = [
        (
            phase.name,
            str(phase.answers),
            ", ".join(phase.speculative.reasons),
            "-" if phase.speculative.acceptance_ratio is None else f"{phase.speculative.acceptance_ratio:.2f}",
            *(str(getattr(phase.speculative, name)) for name in ("accepted", "rejected", "ignored")),
            f"{phase.tokens_ratio:.3f}",
        )
        for phase in phases
    ]
    return markdown(columns, rows)
