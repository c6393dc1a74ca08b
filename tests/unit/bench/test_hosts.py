"""What ``bench hosts`` makes of deaths."""

import msgspec
import pytest

from bench.hosts import Death, Outcome, bars, table
from lanes.watchdog import MIN_DEADLINE_S

DEATHS = [
    Death(how="killed", replaced_s=3.0, pauses_s=[3.1, 3.5, 3.9], said="the host was ended by SIGKILL"),
    Death(how="killed", replaced_s=4.0, pauses_s=[4.5, 4.6, 4.7], said="the host was ended by SIGKILL"),
    Death(how="stopped", replaced_s=6.5, pauses_s=[6.6, 6.7, 7.0], said="the host hung and was killed"),
]
OUTCOME = Outcome(answers=9, changed=0, errors=[], resumed=6, deaths=DEATHS, orphaned_s=0.1, files_left=0)


def broken(**fields):
    return [bar.promise for bar in bars(msgspec.structs.replace(OUTCOME, **fields)) if not bar.kept]


def test_each_way_to_die_is_a_row_of_medians_and_worst_cases():
    rows = table(DEATHS).splitlines()[2:]
    assert rows == [
        "| killed | 2 | 3.00 s | 4.00 s | 3.90 s | 4.70 s |",
        "| stopped | 1 | 6.50 s | 6.50 s | 6.70 s | 7.00 s |",
    ]


@pytest.mark.parametrize(
    ("fields", "promise"),
    [
        ({"errors": ["RemoteProtocolError: "]}, "errors that clients saw"),
        ({"orphaned_s": 5.1}, "s until the hosts of a killed router are gone"),
        ({"files_left": 1}, "files that they leave"),
        ({"changed": 1}, "answers that differ from the undisturbed one"),
        ({"deaths": [msgspec.structs.replace(DEATHS[2], replaced_s=MIN_DEADLINE_S + 2.1)]}, "s from a stop"),
    ],
)
def test_whatever_a_client_notices_and_a_stop_that_takes_too_long_break_a_promise(fields, promise):
    assert broken() == []
    (found,) = broken(**fields)
    assert found.startswith(promise)


def test_without_stops_nothing_is_promised_of_them():
    assert len(bars(msgspec.structs.replace(OUTCOME, deaths=DEATHS[:2]))) == 4
