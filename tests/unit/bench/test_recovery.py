"""What a draft that guesses badly may cost, held against made-up answers."""

import msgspec
import pytest

from bench.recovery import WINDOW_TOKENS, _changed, _phase, bars, table
from tests.unit.bench.matrices import ACTIVE, OFF, active, place, sample

BAD = active(4, 60)
LOW = msgspec.structs.replace(OFF, requested=True, reason="low_acceptance")


def both_ways(reports, tokens_per_s=100.0, plain=100.0):
    """Each answer, and plain decoding of the same prompt beside it."""
    return [
        one
        for number, report in enumerate(reports)
        for one in (
            sample(place(), "off", number=number, tokens_per_s=plain),
            sample(place(), "on", number=number, tokens_per_s=tokens_per_s, report=report),
        )
    ]


def phases(**changes):
    made = {
        "bad": _changed("bad", both_ways([BAD, BAD])),
        "off": _phase("off", both_ways([LOW] * 3)),
        "tried": _changed("tried", both_ways([ACTIVE])),
        "on": _phase("on", both_ways([ACTIVE] * 3, tokens_per_s=150.0)),
    }
    return list({**made, **changes}.values())


def broken(found):
    return [bar.promise for bar in bars(found) if not bar.kept]


def test_a_run_as_promised_keeps_every_bar():
    assert broken(phases()) == []
    assert "| off | 3 | low_acceptance | - |" in table(phases())


def test_what_prompt_lookup_proposed_does_not_fill_the_drafts_window():
    looked_up = active(300, 20, lookup_rounds=8, lookup_proposed=300, lookup_accepted=300)
    assert _changed("bad", both_ways([looked_up, BAD])).compared == 20


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        (
            {"bad": _changed("bad", both_ways([BAD] * (2 + WINDOW_TOKENS // 64)))},
            "draft tokens compared before a bad draft's last answer",
        ),
        ({"off": _phase("off", both_ways([LOW, BAD, LOW]))}, "answers that say low_acceptance, of those after it"),
        ({"off": _phase("off", both_ways([LOW], tokens_per_s=96.0))}, "tokens/s after it : plain"),
        ({"on": _phase("on", both_ways([ACTIVE, LOW], 150.0))}, "answers that speculate with a good draft"),
        ({"on": _phase("on", both_ways([ACTIVE], 90.0))}, "tokens/s with a good draft : plain"),
    ],
)
def test_each_promise_can_be_broken(changes, promise):
    assert broken(phases(**changes)) == [promise]
