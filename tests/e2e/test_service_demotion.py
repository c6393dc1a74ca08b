"""An answer that begins on the interactive lane and goes on in the batch, on the embedded pair."""

import json

import pytest

from tests.e2e.router_process import router

CONFIG = """
models:
  - {name: opta-tiny, target: "embedded:target", draft: "embedded:draft", preload: true}
lanes:
  interactive: {demote_after_tokens: 32}
"""
WITHOUT_END = {"0": -100, "4": -100}  # the embedded target's end tokens
BODY = {"model": "opta-tiny", "prompt": "def fibonacci(n):\n", "max_tokens": 128, "logit_bias": WITHOUT_END}


@pytest.fixture(scope="module")
def demoting(tmp_path_factory):
    with router(tmp_path_factory.mktemp("demoting"), CONFIG) as running:
        yield running


def streamed(running, body, **headers):
    answer = running.post("/v1/completions", {**body, "stream": True}, **headers)
    assert answer.status_code == 200, answer.text
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(event) for event in data]
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    return answer, text, chunks[-1]["opta"]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 7}], ids=["greedy", "seeded"])
def test_a_stream_that_moves_to_the_batch_never_notices(demoting, sampling):
    _, expected, pinned = streamed(demoting, {**BODY, **sampling}, x_opta_lane="interactive")
    assert "demoted" not in pinned
    answer, text, opta = streamed(demoting, {**BODY, **sampling})
    assert text == expected
    assert (answer.headers["x-opta-lane"], opta["lane"], opta["route"]) == ("interactive", "interactive", "auto:room")
    assert opta["demoted"]["lane"] == "throughput"
    assert 32 <= opta["demoted"]["after_tokens"] < 128
    assert opta["speculative"]["rounds"] > 0


def test_a_short_answer_stays(demoting):
    assert "demoted" not in streamed(demoting, {**BODY, "max_tokens": 32})[2]
    lanes = demoting.get("/admin/lanes").json()
    assert (lanes["interactive"]["active"], lanes["throughput"]["active"]) == (0, 0)
