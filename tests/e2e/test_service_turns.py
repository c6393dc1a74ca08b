"""Chats of several turns with the router as it comes: what was computed for one turn is not computed again."""

import pytest

from tests.e2e.processes import eventually

SAYS = [
    "write a function that joins two lists and returns the longer one, then sort it by the length of its items",
    "now the same for dictionaries, and let the caller choose which of two equal keys wins",
    "and write a test",
]
LANES = pytest.mark.parametrize("lane", ["interactive", "throughput"])


def shown(pair):
    (model,) = pair.get("/admin/models").json()["models"]
    return model["prompt_caches"]


def chat(client, lane, stream=False):
    """The cached tokens and prompt tokens of each turn of a chat, and its answers."""
    messages, seen = [], []
    for text in SAYS:
        messages.append({"role": "user", "content": f"{lane}: {text}"})
        request = {"model": "auto", "messages": messages, "max_completion_tokens": 32, "temperature": 0}
        headers = {"X-Opta-Lane": lane}
        if stream:
            with client.chat.completions.create(
                **request, stream=True, stream_options={"include_usage": True}, extra_headers=headers
            ) as chunks:
                *parts, last = list(chunks)
            answer, usage = "".join(part.choices[0].delta.content or "" for part in parts), last.usage
        else:
            whole = client.chat.completions.create(**request, extra_headers=headers)
            answer, usage = whole.choices[0].message.content, whole.usage
        messages.append({"role": "assistant", "content": answer})
        seen.append((usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens))
    return seen, [message["content"] for message in messages[1::2]]


@LANES
def test_each_turn_says_how_much_of_it_was_known_and_the_same_chat_again_is_answered_the_same(pair, lane):
    before = shown(pair)
    with pair.sdk() as client:
        seen, answers = chat(client, lane)
        again, answers_again = chat(client, lane, stream=True)
    assert answers_again == answers
    for turn in range(1, len(SAYS)):
        known, prompt_tokens = seen[turn]
        assert seen[turn - 1][1] <= known < prompt_tokens
    assert [known for known, _ in again] == [prompt_tokens - 1 for _, prompt_tokens in again]

    def counted():
        now = shown(pair)
        reused = sum(known for known, _ in seen + again)
        return now["reused_tokens"] == before["reused_tokens"] + reused and now["hits"] >= before["hits"] + 5

    eventually(counted)  # at a heartbeat
    assert 0 < shown(pair)["size_bytes"] <= pair.get("/admin/models").json()["prompt_cache_limit_bytes"]


def test_one_lane_knows_what_the_other_computed(pair):
    messages = [{"role": "user", "content": f"lanes: {SAYS[0]}"}]
    request = {"model": "auto", "messages": messages, "max_completion_tokens": 8, "temperature": 0}
    with pair.sdk() as client:
        one, other = (
            client.chat.completions.create(**request, extra_headers={"X-Opta-Lane": lane})
            for lane in ("throughput", "interactive")
        )
    assert other.choices[0].message.content == one.choices[0].message.content
    assert other.usage.prompt_tokens_details.cached_tokens == one.usage.prompt_tokens - 1
