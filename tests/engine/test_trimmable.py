"""Whose caches give back what was rejected, for as long as an answer may get."""

import pytest

from lanes.host.models import load_pair, trimmable
from lanes.wire import ModelSpec
from tests import tiny_pairs


@pytest.mark.parametrize(("family", "expected"), [("llama", True), ("mamba", False), ("gemma3_text", False)])
def test_a_state_and_a_window_that_fills_cannot_be_trimmed(tmp_path, family, expected):
    pair = load_pair(ModelSpec("tiny", str(tiny_pairs.make(tmp_path / family, family))))
    assert trimmable(pair.target) is expected
