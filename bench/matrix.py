"""``bench matrix``: speculation on and off, over models, prompt classes, lanes and concurrency, through a real service.

The service is started by the command, from the configuration that is named or with the embedded pair. Results are JSON
(``bench gate`` reads it), a Markdown table and a picture, side by side under one name.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import anyio
import msgspec

from bench import servers
from bench.device import device
from bench.matrix_figures import Sample, cells, comparisons, lane_comparisons
from bench.matrix_measure import Measurement
from bench.matrix_plan import FULL, SHORT, Plan, Subject, service_file, subject_config, subjects
from bench.matrix_result import Matrix, report, write
from bench.prompts import CLASSES
from bench.reporting import machine, today
from opta_router.version import VERSION
from policies.schema import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    add_subject(parser)
    parser.add_argument(
        "--short", action="store_true", help="the matrix of `bench gate`: a minute for the embedded pair"
    )
    parser.add_argument("--classes", nargs="+", choices=CLASSES, metavar="CLASS", help=", ".join(CLASSES))
    parser.add_argument("--prompts", type=int, help="of each class; 0: all")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--tokens", type=int, dest="max_tokens", help="of each answer, at most")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--interactive", type=int, nargs="*", metavar="REQUESTS", help="at once in that lane")
    parser.add_argument("--throughput", type=int, nargs="*", metavar="REQUESTS", help="at once in that lane")
    parser.add_argument(
        "--background", type=int, metavar="STREAMS", help="beside which the lanes' first tokens are timed"
    )
    parser.add_argument("--save", type=Path, metavar="FILE", help="FILE.json, and a table and a picture beside it")


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Which pairs are measured."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="measure the models of this configuration")
    parser.add_argument("--model", metavar="TARGET", help="measure this model instead")
    parser.add_argument("--draft", metavar="DRAFT", help="the draft for --model")
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME", help="of the configuration; all of them")
    parser.add_argument("--try", action="store_true", dest="on_trial", help="let pairs speculate that nobody approved")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, save; there is no promise here: those are ``bench gate``'s."""
    matrix = measure_subject(arguments, plan_of(arguments))
    print(report(matrix))
    if arguments.save is not None:
        write(matrix, arguments.save)
    return 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the options say; one that differs from the two known is held against the full one's bounds."""
    plan = SHORT if arguments.short else FULL
    numbers = ("prompts", "rounds", "max_tokens", "temperature", "background")
    lists = ("classes", "interactive", "throughput")
    changes = {name: getattr(arguments, name) for name in numbers if getattr(arguments, name) is not None}
    changes |= {name: tuple(getattr(arguments, name)) for name in lists if getattr(arguments, name) is not None}
    return msgspec.structs.replace(plan, **changes, **({"profile": "own"} if changes else {}))


def measure_subject(arguments: argparse.Namespace, plan: Plan) -> Matrix:
    """Measure what the options of :func:`add_subject` name. Raises ConfigError."""
    config = subject_config(arguments.config, arguments.model, arguments.draft)
    return measure(config, subjects(config, tuple(arguments.models)), plan, on_trial=arguments.on_trial)


def measure(config: Config, chosen: list[Subject], plan: Plan, *, on_trial: bool = False) -> Matrix:
    """Start a service and ask it all. Blocks until done."""
    with tempfile.TemporaryDirectory(prefix="opta-bench-") as scratch:
        file = service_file(config, Path(scratch), plan, on_trial=on_trial)
        samples = anyio.run(_measure, servers.opta_router(file), [subject.model for subject in chosen], plan)
    return Matrix(
        machine=machine(),
        device=device(),
        date=today(),
        version=VERSION,
        plan=plan,
        subjects=tuple(chosen),
        cells=tuple(cells(samples)),
        comparisons=tuple(comparisons(samples)),
        lane_comparisons=tuple(lane_comparisons(samples)),
    )


async def _measure(server: servers.Server, models: list[str], plan: Plan) -> list[Sample]:
    async with servers.running(server) as client:
        return [sample for model in models for sample in await Measurement(client, model, plan).samples()]
