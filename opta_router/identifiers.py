"""Names for requests and answers: none comes twice, and none is a secret."""

from __future__ import annotations

import random

_random = random.Random()  # noqa: S311 - seeded by the system once; `secrets` asks it again for every name


def new_identifier() -> str:
    """96 random bits, in hexadecimal."""
    return f"{_random.getrandbits(96):024x}"
