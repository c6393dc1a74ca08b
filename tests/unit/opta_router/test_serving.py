"""What the host is told of the configuration."""

import pytest

from opta_router.serving import UNKNOWN_SHARE_BYTES, prompt_cache_bytes
from policies.quantities import MemoryAmount
from policies.schema import Config, MemoryConfig


@pytest.mark.parametrize(
    ("written", "memory_bytes", "expected"),
    [
        ("10%", 5000, 500),
        ("1KiB", 5000, 1024),
        ("1KiB", 1000, 1000),
        ("1KiB", 0, 1024),
        ("10%", 0, UNKNOWN_SHARE_BYTES),
        (None, 5000, 0),
    ],
)
def test_prompt_caches_may_take_what_is_written_also_where_the_devices_memory_is_not_known(
    written, memory_bytes, expected
):
    amount = MemoryAmount.parse(written) if written is not None else None
    assert prompt_cache_bytes(Config(memory=MemoryConfig(prompt_caches=amount)), memory_bytes) == expected
