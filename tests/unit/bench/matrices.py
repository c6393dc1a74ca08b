"""Results of `bench matrix`, made up: one pair, each sample's figures as a test says."""

from bench.matrix_figures import Place, Sample, cells, comparisons, lane_comparisons
from bench.matrix_plan import SHORT, Subject
from bench.matrix_result import Matrix
from lanes.wire import SpecCounters
from opta_router.request import SpeculativeReport

SUBJECT = Subject(model="m", target="org/target", draft="org/draft")


def active(accepted=20, rejected=8, **counts):
    """An answer that speculated, of so many draft tokens."""
    counters = SpecCounters(10, accepted + rejected + 2, accepted, rejected, 2, **counts)
    return SpeculativeReport.of(counters, requested=True, active=True, reason="approved")


ACTIVE = active()
OFF = SpeculativeReport(requested=False, active=False, reason="client_off")


def place(prompts="code", lane="interactive", concurrency=1, background=0):
    return Place(model="m", prompts=prompts, lane=lane, concurrency=concurrency, background=background)


def sample(where, way="on", *, round_=0, number=0, tokens_per_s=10.0, ttft_ms=100.0, text="a", report=None):
    """As many answers as the place has concurrency, all alike, in one second."""
    answers = where.concurrency
    if report is None:
        report = ACTIVE if way == "on" and where.lane == "interactive" else OFF
    return Sample(
        place=where,
        way=way,
        round=round_,
        number=number,
        wall_s=1.0,
        tokens=round(tokens_per_s),
        ttfts_ms=(ttft_ms,) * answers,
        texts=(text,) * answers,
        speculative=(report,) * answers,
    )


def a_run(*, speedup=2.0, ttft_ms=100.0, kept=1.0, batched_ttft_ms=300.0, report=ACTIVE, classes=("code", "chat")):
    """What a pair shows in both lanes and beside a background."""
    found = []
    for name in classes:
        alone, batch = place(name), place(name, "throughput", 4)
        found += [
            sample(alone, "on", tokens_per_s=100 * speedup, ttft_ms=ttft_ms, report=report),
            sample(alone, "off", tokens_per_s=100),
            sample(batch, "on", tokens_per_s=400 * kept),
            sample(batch, "off", tokens_per_s=400),
        ]
    busy = {lane: place("code", lane, 1, 4) for lane in ("interactive", "throughput")}
    found += [
        sample(busy["interactive"], ttft_ms=100, report=report),
        sample(busy["throughput"], ttft_ms=batched_ttft_ms),
    ]
    return found


def matrix(samples, plan=SHORT, subjects=(SUBJECT,)):
    return Matrix(
        machine="a machine",
        device="cpu",
        date="2026-01-02",
        version="0",
        plan=plan,
        subjects=subjects,
        cells=tuple(cells(samples)),
        comparisons=tuple(comparisons(samples)),
        lane_comparisons=tuple(lane_comparisons(samples)),
    )
