"""What the tests of this folder share."""

import pytest
from hypothesis import settings

# The machine that tests may be slow, and a failure must come back on the next run.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture
def anyio_backend():
    return "asyncio"
