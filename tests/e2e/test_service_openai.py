"""The router as it comes, asked by the official OpenAI SDK."""

import pytest

from lanes.embedded import held_out_prompts

PROMPT = held_out_prompts()[0].prompt
ASK = [{"role": "user", "content": "write a function that adds two numbers"}]
BY = pytest.mark.parametrize(
    ("headers", "fields", "lane", "route"),
    [
        ({"X-Opta-Lane": "interactive"}, {}, "interactive", "hint:x-opta-lane"),
        ({"X-Opta-Lane": "throughput"}, {}, "throughput", "hint:x-opta-lane"),
        ({}, {}, "interactive", "auto:room"),
        ({}, {"service_tier": "flex"}, "throughput", "hint:service_tier"),
        ({}, {"service_tier": "priority"}, "interactive", "hint:service_tier"),
    ],
    ids=["interactive", "throughput", "nothing", "flex", "priority"],
)


def check_report(opta, usage, lane, route):
    """The `opta` object says who served and why, and its counts agree with each other and with the usage."""
    assert (opta["lane"], opta["route"], opta["resumed"]) == (lane, route, 0)
    assert 0 <= opta["queue_ms"] <= opta["ttft_ms"]
    speculative = opta["speculative"]
    details = usage.completion_tokens_details
    if lane == "throughput":
        assert (speculative["active"], speculative["reason"]) == (False, "lane")
        assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (0, 0)
        return
    assert (speculative["active"], speculative["reason"], speculative["telemetry"]) == (True, "approved", "native")
    compared = speculative["accepted"] + speculative["rejected"]
    assert compared + speculative["ignored"] == speculative["proposed"]
    assert speculative.get("acceptance_ratio") == (round(speculative["accepted"] / compared, 4) if compared else None)
    assert details.accepted_prediction_tokens == speculative["accepted"] <= usage.completion_tokens
    assert details.rejected_prediction_tokens == speculative["rejected"]


@BY
def test_a_chat_says_which_lane_served_it_and_why(pair, headers, fields, lane, route):
    with pair.sdk() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=ASK, max_completion_tokens=24, temperature=0, extra_headers=headers, **fields
        )
        answer = raw.parse()
    assert (raw.headers["x-opta-lane"], raw.headers["x-opta-route"]) == (lane, route)
    assert raw.headers["x-request-id"]
    assert answer.model == "opta-tiny"
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 24
    assert answer.service_tier == fields.get("service_tier")
    check_report(answer.opta, answer.usage, lane, route)


@BY
def test_a_streamed_completion_says_it_too_and_is_the_same_text(pair, headers, fields, lane, route):
    request = {"model": "opta-tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    with pair.sdk(**headers) as client:
        with client.completions.with_streaming_response.create(
            **request, stream=True, stream_options={"include_usage": True}, extra_body=fields
        ) as raw:
            assert (raw.headers["x-opta-lane"], raw.headers["x-opta-route"]) == (lane, route)
            assert raw.headers["content-type"].startswith("text/event-stream")
            *chunks, last = list(raw.parse())
        whole = client.completions.create(**request, extra_body=fields)
    assert len(chunks) > 1
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices[0].finish_reason, last.choices) == ("length", [])
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 24
    check_report(chunks[-1].opta, last.usage, lane, route)


def test_speculation_proposes_and_has_tokens_accepted(pair):
    with pair.sdk() as client:
        answer = client.completions.create(
            model="auto", prompt=PROMPT, max_tokens=128, temperature=0, extra_headers={"X-Opta-Lane": "interactive"}
        )
    assert answer.opta["speculative"]["rounds"] > 0
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens > 0


def test_a_streamed_chat_is_what_the_sdk_expects(pair):
    with pair.sdk() as client:
        request = {"model": "auto", "messages": ASK, "max_tokens": 16, "temperature": 0}
        with client.chat.completions.create(**request, stream=True) as stream:
            chunks = list(stream)
        whole = client.chat.completions.create(**request)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("lane", ["interactive", "throughput"])
def test_an_answer_ends_before_its_stop_string(pair, lane):
    with pair.sdk(**{"X-Opta-Lane": lane}) as client:
        request = {"model": "auto", "prompt": PROMPT, "max_tokens": 48, "temperature": 0}
        whole = client.completions.create(**request).choices[0].text
        stop = whole[len(whole) // 2 :][:4]
        expected = whole[: whole.index(stop)]
        stopped = client.completions.create(**request, stop=["never to be seen", stop])
        with client.completions.create(**request, stop=stop, stream=True) as stream:
            streamed = list(stream)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (expected, "stop")
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected
    assert streamed[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("lane", ["interactive", "throughput"])
def test_a_seed_makes_sampling_reproducible(pair, lane):
    with pair.sdk(**{"X-Opta-Lane": lane}) as client:

        def sampled(seed):
            request = {"model": "auto", "prompt": PROMPT, "max_tokens": 24, "temperature": 1.2, "top_p": 0.95}
            return client.completions.create(**request, seed=seed).choices[0].text

        assert sampled(7) == sampled(7)
        assert sampled(7) != sampled(8)


@pytest.mark.parametrize("number", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_greedy_text_is_the_same_with_and_without_speculation_and_in_both_lanes(pair, number):
    prompt = held_out_prompts()[number * 5].prompt
    with pair.sdk() as client:

        def greedy(lane, **body):
            return client.completions.create(
                model="auto",
                prompt=prompt,
                max_tokens=64,
                temperature=0,
                extra_headers={"X-Opta-Lane": lane},
                extra_body=body,
            )

        speculated, plain = greedy("interactive"), greedy("interactive", num_draft_tokens=0)
        batched = greedy("throughput")
    assert plain.choices[0].text == speculated.choices[0].text == batched.choices[0].text
    assert (plain.opta["speculative"]["active"], plain.opta["speculative"]["reason"]) == (False, "client_off")


def test_the_models_are_listed_under_all_their_names(pair):
    with pair.sdk() as client:
        assert [model.id for model in client.models.list()] == ["opta-tiny", "auto"]
        found = client.models.retrieve("auto")
    assert (found.opta["model"], found.opta["loaded"], found.opta["kind"]) == ("opta-tiny", True, "alias")
    assert pair.get("/v1/models/nothing").status_code == 404


def test_a_request_id_is_echoed_and_a_hint_that_says_nothing_is_reported(pair):
    with pair.sdk(**{"X-Request-Id": "mine-1", "X-Opta-Lane": "warp"}) as client:
        raw = client.completions.with_raw_response.create(model="auto", prompt="def f(", max_tokens=1)
    assert raw.headers["x-request-id"] == "mine-1"
    opta = raw.parse().opta
    assert opta["hint_ignored"] == "x-opta-lane: no rule for 'warp'"
    assert opta["route"] == "auto:room"


def test_it_is_alive_and_ready(pair):
    assert pair.get("/healthz").json() == {"status": "ok"}
    assert pair.get("/readyz").json() == {"status": "ready"}
