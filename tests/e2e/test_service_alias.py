"""Two models behind one alias."""

from concurrent.futures import ThreadPoolExecutor

from tests.e2e.router_process import router

CONFIG = """
models:
  - {name: one, target: "scripted:step_s=0.01", aliases: [either], preload: true}
  - {name: two, target: "scripted:step_s=0.01", aliases: [either], preload: true}
"""
PATH = "/v1/completions"


def ask(running, number, max_tokens=40):
    body = {"model": "either", "prompt": f"request {number}", "max_tokens": max_tokens}
    answer = running.post(PATH, body, x_opta_lane="throughput")
    assert answer.status_code == 200, answer.text
    return answer.json()["model"]


def test_requests_for_a_shared_alias_are_spread_and_a_conversation_stays(tmp_path):
    with router(tmp_path, CONFIG) as running:
        assert [entry["id"] for entry in running.get("/v1/models").json()["data"]] == ["one", "either", "two"]
        with ThreadPoolExecutor(8) as pool:
            served = list(pool.map(lambda number: ask(running, number), range(8)))
        assert sorted(served) == ["one"] * 4 + ["two"] * 4
        assert [ask(running, number, 2) for number in range(8)] == served
