"""Names for requests and answers."""

import re
import subprocess
import sys

from opta_router.identifiers import new_identifier


def test_identifiers_are_of_one_shape_and_differ():
    made = {new_identifier() for _ in range(10_000)}
    assert len(made) == 10_000
    assert all(re.fullmatch("[0-9a-f]{24}", name) for name in made)


def test_another_process_makes_others():
    command = [sys.executable, "-c", "from opta_router.identifiers import new_identifier; print(new_identifier())"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first != second
