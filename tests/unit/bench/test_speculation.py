"""The figures of ``bench speculation``, from what was measured."""

import pytest

from bench.speculation import DRAFT, GUIDED, LOOKUP, OURS, PLAIN, Answer, Measured, Plan, Run, bars, best_mlx_lm, report
from lanes.wire import SpecCounters

PLAN = Plan(
    target="t",
    draft="d",
    tokens=8,
    max_draft_tokens=8,
    temperatures=(0.0, 0.8),
    mlx_lm_lengths=(2, 4),
    repeats=1,
    classes=("code", "json"),
)


def measured(name, temperature=0.0, same=True, **seconds):
    counters = SpecCounters.of_round("draft_model", 4, 3, 4) + SpecCounters.of_round("prompt_lookup", 2, 2, 2)
    answers = {
        way.replace("_", " "): Answer(
            token_s=token_s, tokens=8, digest="a" if same or way != OURS else "b", counters=counters
        )
        for way, token_s in seconds.items()
    }
    answers["mlx-lm 2"], answers["mlx-lm 4"] = (Answer(token_s=s, tokens=8, digest="a") for s in (0.8, 0.6))
    return Measured(prompt_class=name, prompt=name, temperature=temperature, answers=answers)


def run(*of):
    return Run(device="cpu", blas=None, plan=PLAN, measured=of)


def kept(*of):
    return {bar.promise: (bar.measured, bar.kept) for bar in bars(run(*of))}


GOOD = (measured("code", plain=1.0, ours=0.5, draft=0.5), measured("json", plain=1.0, ours=0.5, draft=0.8))
EDITED = Measured(
    prompt_class=GUIDED,
    prompt="e",
    temperature=0.0,
    answers={way: Answer(token_s=s, tokens=8, digest="a") for way, s in {PLAIN: 1.0, OURS: 0.5, LOOKUP: 0.4}.items()},
)


def test_what_is_good_keeps_every_promise():
    found = kept(*GOOD, EDITED)
    assert all(kept for _, kept in found.values())
    assert found["greedy: over plain decoding, geometric mean"] == (2.0, True)
    assert found["greedy: over mlx-lm 4"] == (1.2, True)
    assert found[f"{GUIDED}: prompt lookup over plain decoding"] == (2.5, True)


@pytest.mark.parametrize(
    ("bad", "promise"),
    [
        (measured("code", plain=1.0, ours=1.1), "greedy: over plain decoding, code (the least class)"),
        (measured("code", plain=1.0, ours=1.1), "greedy: over plain decoding, geometric mean"),
        (measured("code", plain=1.0, ours=0.9), "greedy: over mlx-lm 4"),
        (measured("code", 0.8, plain=1.0, ours=0.8), "temperature 0.8: over plain decoding, geometric mean"),
        (
            measured("code", same=False, plain=1.0, ours=0.1),
            "greedy answers that are plain decoding's, token for token",
        ),
    ],
)
def test_each_promise_can_be_broken(bad, promise):
    assert kept(bad)[promise][1] is False


def test_mlx_lm_is_taken_at_its_best_length_over_all_prompts():
    assert best_mlx_lm(GOOD) == "mlx-lm 4"
    assert best_mlx_lm([EDITED]) is None


def test_the_report_has_a_row_for_each_class_and_says_what_was_accepted_of_whom():
    text = report(run(*GOOD, EDITED))
    assert "| code | 1.0 | 2.0 | 2.0 | 1.2 | 1.7 |" in text
    assert "0.75 of 4 | 1.00 of 2 |" in text
    assert f"| {GUIDED} |" in text
    assert DRAFT in text
