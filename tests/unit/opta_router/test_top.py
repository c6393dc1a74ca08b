"""``opta-router top``: from the event stream to what a terminal shows."""

import contextlib
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest
from rich.console import Console

from opta_router import top
from opta_router.cli import main
from opta_router.http.admin_models import SpeculationCounts, SpeculationView
from opta_router.http.live_view import Snapshot
from opta_router.journal import Entry, Moment
from opta_router.top_view import rendered
from opta_router.watching import SHARE_S, Watch
from policies.acceptance import AcceptanceGate, gate_rules
from policies.schema import SpeculationConfig
from tests.unit.telemetry.lives import ending

LANE = {
    "weight": 8.0, "max_active": 1, "max_queue": 32, "queue_timeout": 30.0, "active": 1, "on_device": 1, "queued": 3,
    "granted": 9, "spilled": 0, "demoted": 0, "rejected": {"queue_full": 2}, "device_s": 0.0,
    "bounded_steps": 0, "late_steps": 0,
}  # fmt: skip
ENGINE = {
    "state": "ready", "not_ready": [], "draining": False, "pid": 7, "restarts": 0, "resumed": 0, "waiting": 0,
    "last_failure": None, "last_activity": None, "quarantined": {},
}  # fmt: skip
MODEL = {
    "name": "opta-tiny", "target": "t", "draft": "d", "aliases": [], "state": "resident", "in_state_s": 1.0,
    "message": None, "quarantine": None, "in_use": 1, "waiting": 0, "preload": True, "keep_alive": 600.0,
    "pinned": False, "reserved_bytes": 2**20, "load_s": 1.0, "progress": None,
    "facts": None,
    "speculation": SpeculationView(
        requested=True,
        active=True,
        reason="approved",
        approval=None,
        gate=AcceptanceGate(gate_rules(SpeculationConfig())).view(0.0),
        counts=SpeculationCounts(
            rounds=0,
            proposed=0,
            accepted=0,
            rejected=0,
            ignored=0,
            acceptance_ratio=None,
            mean_accepted_tokens=None,
            reasons={},
        ),
    ),
}  # fmt: skip


def snapshot(at_s=10.0, tokens=(0, 0), device_s=(0.0, 0.0), started_s=1, drafts=None, in_flight=(), **engine):
    lanes = {
        "interactive": {**LANE, "device_s": device_s[0]},
        "throughput": {**LANE, "weight": 1.0, "max_active": 32, "active": 4, "queued": 0, "device_s": device_s[1]},
    }
    return msgspec.convert(
        {
            "version": "1.2.3",
            "at_s": at_s,
            "started_s": started_s,
            "engine": {**ENGINE, **engine},
            "lanes": lanes,
            "models": {"limit_bytes": 2**30, "reserved_bytes": 2**20, "active_bytes": 2**19, "models": [MODEL]},
            "tokens": dict(zip(("interactive", "throughput"), tokens, strict=True)),
            "drafts": drafts or {},
            "min_acceptance": 0.35,
            "in_flight": list(in_flight),
            "not_shown": 0,
        },
        Snapshot,
    )


def entry(seq=1, ttft_ms=40.0, **fields):
    opta = msgspec.structs.replace(ending().opta, ttft_ms=ttft_ms)
    base = {
        "seq": seq, "request_id": f"req-{seq}", "model": "opta-tiny", "lane": "interactive", "route": "auto:room",
        "arrived_s": 1000.0, "operation": "chat", "stream": True, "moments": [Moment("queued", 0.1)],
        "outcome": "finished", "finish_reason": "stop", "completion_tokens": 34, "opta": opta,
    }  # fmt: skip
    return Entry(**{**base, **fields})


def printed(watch, rows=20):
    console = Console(file=io.StringIO(), width=140)
    console.print(rendered(watch, "http://there", rows))
    return console.file.getvalue()


def test_rates_are_differences_of_snapshots():
    watch = Watch()
    watch.take(snapshot(10.0))
    assert (watch.tokens_per_s("interactive"), watch.device_shares()) == (0.0, None)
    assert "not known yet" in printed(watch)
    watch.take(snapshot(12.0, (100, 10), (1.5, 0.5)))
    assert watch.tokens_per_s("interactive") == 50
    assert watch.device_shares() == {"interactive": 0.75, "throughput": 0.25}
    watch.take(snapshot(12.0 + SHARE_S, (100, 10), (1.5, 0.5)))
    assert (watch.tokens_per_s("interactive"), watch.device_shares()) == (0.0, None)


def test_another_router_is_looked_at_afresh():
    watch = Watch()
    watch.take(snapshot(10.0, (900, 0)))
    watch.take(entry(1))
    watch.take(snapshot(2.0, started_s=2))
    watch.take(snapshot(3.0, (5, 0), started_s=2))
    assert watch.tokens_per_s("interactive") == 5
    assert list(watch.ended) == []


def test_a_request_that_is_told_twice_is_shown_once_and_the_median_is_of_those_that_had_a_token():
    watch = Watch()
    for event in (entry(1, 10.0), entry(2, 30.0), entry(2, 30.0), entry(3, 500.0), entry(4, opta=None)):
        watch.take(event)
    assert [one.seq for one in watch.ended] == [1, 2, 3, 4]
    assert watch.first_token_ms("interactive") == 30.0
    assert watch.first_token_ms("throughput") is None


def test_what_is_shown_has_lanes_shares_pairs_and_requests():
    watch = Watch()
    watch.take(snapshot(10.0))
    drafts = {"opta-tiny": {"rounds": 4, "proposed": 20, "accepted": 15, "rejected": 5, "ignored": 0}}
    flight = {
        "seq": 9, "request_id": "req-flying", "model": "opta-tiny", "lane": "interactive", "route": "default",
        "stage": "decode", "age_ms": 120.0, "moments": [], "tokens": 20, "accepted": 15, "proposed": 20,
    }  # fmt: skip
    watch.take(snapshot(12.0, (100, 10), (1.5, 0.5), drafts=drafts, in_flight=[flight]))
    watch.take(entry(1, sub_client="agent-1"))
    watch.take(entry(2, outcome="failed", code="queue_full", opta=None, finish_reason=None, completion_tokens=None))
    shown = printed(watch)
    for words in (
        "ready, 5 running, 3 waiting", "1 of 1", "4 of 32", "50.0", "75% : 25%, by weight 89% : 11%", "75% of 20",
        "3.8", "req-flying", "auto:room", "agent-1", "queue_full", "approved", "resident",
    ):  # fmt: skip
        assert words in shown


def test_a_lost_engine_is_said_first():
    watch = Watch()
    watch.take(snapshot(state="starting", restarts=1, last_failure="the host was ended by SIGKILL"))
    assert "the engine is being restarted: the host was ended by SIGKILL" in printed(watch).splitlines()[0]


@contextlib.contextmanager
def answering(status, *bodies):
    """A server of one answer, in pieces."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("authorization")))
            self.send_response(status)
            self.end_headers()
            for body in bodies:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    asked = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def event(name, data):
    return f"event: {name}\ndata: {msgspec.json.encode(data).decode()}\n\n".encode()


def test_piped_it_prints_one_look_and_ends(capsys, monkeypatch):
    monkeypatch.setenv(top.KEY_VARIABLE, "the-key")
    stream = [
        event("ended", entry(1)),
        event("snapshot", snapshot(10.0)),
        b": keep-alive\n\n",
        event("something-new", {}),
        event("snapshot", snapshot(12.5, (100, 0))),
        event("snapshot", snapshot(13.0, (9000, 0))),
    ]
    with answering(200, *stream) as (url, asked):
        assert main(["top", "--url", url]) == 0
    shown = capsys.readouterr().out
    assert "40.0" in shown
    assert "req-1" not in shown.splitlines()[0]
    assert "\x1b" not in shown
    assert asked == [("/live/events", "Bearer the-key")]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b'{"error": {"message": "no key", "type": "t", "param": null, "code": "c"}}', "no key"),
        (200, b"", "has stopped"),
        (404, b"<html>", "status 404"),
    ],
)  # fmt: skip
def test_a_router_that_cannot_be_watched_is_an_error_in_words(capsys, status, body, said):
    with answering(status, body) as (url, _):
        assert main(["top", "--once", "--url", url]) == 1
    assert said in capsys.readouterr().err


def test_nobody_there_is_an_error_in_words(capsys):
    assert main(["top", "--once", "--url", "http://127.0.0.1:9"]) == 1
    assert "http://127.0.0.1:9" in capsys.readouterr().err
