"""Routers with several pairs: their configuration, requests to them, and what an operator sees of them."""

import json

from tests.e2e.processes import eventually

TEXT = "/v1/completions"
LIMIT_BYTES = 48 * 1024**2


def body(model, **fields):
    return {"model": model, "prompt": "def add(a, b):\n", "max_tokens": 4, "temperature": 0, **fields}


def ask(running, model, lane="interactive", **fields):
    return running.post(TEXT, body(model, **fields), x_opta_lane=lane)


def speculative(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["opta"]["speculative"]


def view(running, model):
    return next(found for found in running.get("/admin/models").json()["models"] if found["name"] == model)


def state(running, model):
    return view(running, model)["state"]


def configuration(pairs, approved=(), **speculation):
    """A file's text. `pairs`: name -> (target, draft or None, other keys)."""
    models = [
        {"name": name, "target": str(target), **({"draft": str(draft)} if draft else {}), "keep_alive": "1h", **keys}
        for name, (target, draft, keys) in pairs.items()
    ]
    matrix = [{"target": str(pairs[name][0]), "draft": str(pairs[name][1]), "evidence": "a test"} for name in approved]
    return json.dumps(
        {
            "models": models,
            "memory": {"limit": LIMIT_BYTES},
            "speculation": {"approved": matrix, **speculation},
            "lanes": {"interactive": {"queue_timeout": "60s"}, "throughput": {"max_active": 4}},
        }
    )


def settled_bytes(running):
    """The device's memory as of a heartbeat that began after everything before."""
    seen = []

    def twice_the_same():
        seen.append(running.get("/admin/models").json()["active_bytes"])
        return len(seen) > 75 and len(set(seen[-75:])) == 1

    eventually(twice_the_same)
    return seen[-1]
