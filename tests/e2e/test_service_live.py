"""The live page's files and its event stream, on a real router."""

import hashlib
import json
import subprocess
import sys
from contextlib import contextmanager

import httpx

from opta_router.live_feed import MAX_VIEWERS
from tests.e2e.router_process import ANSWER_DEADLINE_S, router

KEY = "opta-of-the-tests"
GUARDED = (
    f"server: {{admin_key_sha256: {hashlib.sha256(KEY.encode()).hexdigest()}, drain_timeout: 60s}}\n"
    + """
models:
  - {name: echo, target: "scripted:tokens_per_step=1,step_s=0.01", preload: true}
"""
)


@contextmanager
def watching(running, **headers):
    """An iterator over `(name, data)` of the event stream."""
    with httpx.stream(
        "GET", f"{running.url}/live/events", headers=headers, timeout=ANSWER_DEADLINE_S, trust_env=False
    ) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events(response)


def events(response):
    name = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_the_page_and_all_its_files_come_from_here_and_nothing_may_be_inline(pair):
    page = pair.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "://" not in page.text
    for path in ("/live/style.css", "/live/parts.css", "/live/app.js", "/live/theme.js", "/live/icon.svg"):
        file = pair.get(path)
        assert file.status_code == 200
        assert pair.get(path, **{"if-none-match": file.headers["etag"]}).status_code == 304
    for path in ("/live/../service.py", "/live/%2e%2e%2fservice.py", "/live/none.js", "/live/"):
        assert pair.get(path).status_code == 404


def test_a_request_is_seen_in_flight_and_then_among_the_last_ones(pair):
    body = {"model": "opta-tiny", "prompt": "canary = 1\n", "max_tokens": 5, "temperature": 0}
    with watching(pair) as stream:
        next(event for event in stream if event[0] == "snapshot")
        pair.post("/v1/completions", body, x_opta_lane="throughput", x_request_id="req-live")
        entry = next(data for name, data in stream if name == "ended" and data["request_id"] == "req-live")
        _, after = next(event for event in stream if event[0] == "snapshot")
    assert (entry["lane"], entry["route"], entry["completion_tokens"]) == ("throughput", "hint:x-opta-lane", 5)
    assert [moment["name"] for moment in entry["moments"]] == ["queued", "admitted", "dispatched", "first_token"]
    assert after["tokens"]["throughput"] >= 5
    assert after["models"]["models"][0]["state"] == "resident"
    assert "canary" not in json.dumps([entry, after])


def test_a_stream_marks_what_the_draft_proposed_and_the_counts_agree(pair):
    with pair.sdk(**{"X-Opta-Lane": "interactive"}) as client:
        chunks = list(
            client.completions.create(
                model="opta-tiny",
                prompt="def add(a, b):\n",
                max_tokens=48,
                temperature=0,
                stream=True,
                extra_body={"stream_options": {"include_drafted": True}},
            )
        )
    text = "".join(chunk.choices[0].text for chunk in chunks)
    drafted = [
        chunk.choices[0].text[begin:end]
        for chunk in chunks[:-1]
        for begin, end in getattr(chunk, "opta", {"drafted": []})["drafted"]
    ]
    accepted = chunks[-1].opta["speculative"]["accepted"]
    assert accepted > 0
    assert 0 < len("".join(drafted)) < len(text)
    # Pieces may be of several tokens, and a token is a character at least.
    assert len(drafted) <= accepted <= len("".join(drafted))


def test_with_an_admin_key_the_events_need_it_and_the_page_does_not(tmp_path):
    with router(tmp_path, GUARDED) as running:
        assert running.get("/").status_code == 200
        assert running.get("/live/events").json()["error"]["code"] == "invalid_api_key"
        assert running.get("/live/events", authorization="Bearer no").status_code == 401
        assert running.get("/live/events", origin="http://elsewhere.example").status_code == 403
        assert running.get("/live/events", host="rebound.example").status_code == 421
        assert running.post("/live/events", {}, authorization=f"Bearer {KEY}").status_code == 405
        with watching(running, authorization=f"Bearer {KEY}") as stream:
            assert next(stream)[0] == "snapshot"
            # A viewer is no request: it must not hold the router up for its drain timeout.
            assert running.end() == 0


def test_a_viewer_that_has_left_gives_its_place_back(pair):
    for _ in range(MAX_VIEWERS + 2):
        with watching(pair) as stream:
            assert next(stream)[0] in ("ended", "snapshot")


def test_top_shows_the_same_where_its_output_is_piped(pair):
    pair.post(
        "/v1/completions", {"model": "opta-tiny", "prompt": "x = ", "max_tokens": 3}, x_client_id="the-one-for-top"
    )
    command = [sys.executable, "-m", "opta_router", "top", "--url", pair.url]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_DEADLINE_S, check=True)
    for words in ("opta-tiny", "resident", "interactive", "throughput", "by weight 89% : 11%", "the-one-for-top"):
        assert words in ran.stdout
    assert "\x1b" not in ran.stdout
