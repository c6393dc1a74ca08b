"""Pairs of every kind through the real stack: what is served, what is refused and why, and what is left of it."""

import contextlib
import json
import struct
import threading

import httpx
import openai
import pytest

from tests.e2e.processes import eventually, resident_bytes
from tests.e2e.router_process import router
from tests.tiny_pairs import make, shifted, templated

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


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Targets and drafts on the disk, by name."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "target": make(folder / "target"),
        "draft": make(folder / "draft", num_hidden_layers=1),
        "shifted": shifted(make(folder / "shifted", num_hidden_layers=1)),
        "templated": templated(make(folder / "templated", num_hidden_layers=1)),
        "mamba": make(folder / "mamba", "mamba"),
        "gemma": make(folder / "gemma", "gemma3_text"),
    }


def pairs_of(parts):
    """One pair for each reason of a pair's own, by the reason."""
    target, draft = parts["target"], parts["draft"]
    return {
        "approved": (target, draft, {}),
        "not_approved": (draft, target, {}),
        "prompt_lookup": (target, None, {}),
        "tokenizer_mismatch": (target, parts["shifted"], {}),
        "template_mismatch": (target, parts["templated"], {}),
        "cache_not_trimmable": (parts["mamba"], draft, {}),
        "denied": (parts["gemma"], draft, {}),
    }


SPECULATING = {"approved", "prompt_lookup"}
APPROVED = ("approved", "tokenizer_mismatch", "template_mismatch", "cache_not_trimmable")


# reasons


def test_where_nothing_insists_every_pair_serves_and_says_why_it_does_not_speculate(tmp_path, parts):
    pairs = pairs_of(parts)
    with router(tmp_path, configuration(pairs, APPROVED)) as running:
        before = view(running, "denied")
        assert (before["state"], before["facts"], before["speculation"]["active"]) == ("absent", None, False)
        for name in pairs:
            said = speculative(ask(running, name))
            assert (said["reason"], said["active"]) == (name, name in SPECULATING)
            assert said["requested"] is True
            seen = view(running, name)
            assert (seen["state"], seen["speculation"]["reason"]) == ("resident", name)
            assert seen["speculation"]["active"] is (name in SPECULATING)
        assert view(running, "cache_not_trimmable")["facts"]["cache_trimmable"] is False
        assert view(running, "denied")["facts"]["target_family"] == "gemma3_text"
        assert speculative(ask(running, "approved", "throughput"))["reason"] == "lane"
        assert speculative(ask(running, "approved", num_draft_tokens=0))["reason"] == "client_off"
        # A batch takes each of them, too.
        assert {ask(running, name, "throughput").status_code for name in pairs} == {200}
        status = running.get("/admin/status").json()["models"]
        assert {model["name"] for model in status["models"]} == pairs.keys()
        assert status["reserved_bytes"] <= status["limit_bytes"] == LIMIT_BYTES


def test_where_speculation_is_required_a_pair_that_cannot_is_refused_before_anything_is_loaded(tmp_path, parts):
    pairs = pairs_of(parts)
    refused = pairs.keys() - SPECULATING
    with router(tmp_path, configuration(pairs, APPROVED, require_supported=True)) as running:
        for name in refused:
            answer = ask(running, name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
            said = answer.json()["error"]["message"]
            assert f"cannot speculate: {name}" in said
            assert said.endswith("or set speculation.require_supported to false")
            seen = view(running, name)
            assert (seen["state"], seen["reserved_bytes"], seen["load_s"]) == ("failed", 0, None)
            assert seen["speculation"]["active"] is False
        assert "loading" not in running.log.read_text()
        assert speculative(ask(running, "approved"))["active"] is True
        assert speculative(ask(running, "prompt_lookup"))["active"] is True


def test_an_engine_that_lacks_what_speculation_needs_is_seen_by_looking_at_it(tmp_path, parts):
    planted = tmp_path / "planted"
    planted.mkdir()
    # An mlx-lm whose caches are trimmed by another call.
    (planted / "sitecustomize.py").write_text(
        "import importlib.abc, importlib.util, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name != 'mlx_lm.models.cache':\n"
        "            return None\n"
        "        sys.meta_path.remove(self)\n"
        "        spec = importlib.util.find_spec(name)\n"
        "        run = spec.loader.exec_module\n"
        "        def exec_module(module):\n"
        "            run(module)\n"
        "            def trim_prompt_cache(cache, keep):\n"
        "                raise NotImplementedError\n"
        "            module.trim_prompt_cache = trim_prompt_cache\n"
        "        spec.loader.exec_module = exec_module\n"
        "        return spec\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    pairs = {"unsupported_backend": pairs_of(parts)["approved"]}
    text = configuration(pairs, pairs)
    with router(tmp_path, text, {"PYTHONPATH": str(planted)}) as running:
        said = speculative(ask(running, "unsupported_backend"))
        assert (said["requested"], said["active"], said["reason"]) == (True, False, "unsupported_backend")
        path = next(path for path in view(running, "unsupported_backend")["facts"]["paths"] if path["problem"])
        assert "takes no num_tokens: it takes cache, keep" in path["problem"]


# quarantine


def test_a_pair_that_hosts_died_of_is_shown_in_quarantine_is_refused_and_is_loaded_when_an_operator_says_so(tmp_path):
    planted, mended = tmp_path / "planted", tmp_path / "mended"
    planted.mkdir()
    # A model that ends the process that loads it, until it is mended.
    (planted / "sitecustomize.py").write_text(
        "import os\n"
        "from lanes.engines import scripted\n"
        "start = scripted.ScriptedEngine.__init__\n"
        "def init(self, **script):\n"
        f"    if script.get('tokens_per_step') == 7 and not os.path.exists({str(mended)!r}):\n"
        "        os.abort()\n"
        "    start(self, **script)\n"
        "scripted.ScriptedEngine.__init__ = init\n"
    )
    text = configuration(
        {"good": ("scripted:", None, {}), "bad": ("scripted:tokens_per_step=7", None, {"preload": True})}
    )
    with router(tmp_path, text, {"PYTHONPATH": str(planted)}) as running:
        seen = view(running, "bad")
        assert (seen["state"], seen["quarantine"]["deaths"]) == ("failed", 3)
        assert seen["message"].startswith("in quarantine: 3 engines died of it, the last one because ")
        answer = ask(running, "bad")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
        assert "in quarantine" in answer.json()["error"]["message"]
        assert ask(running, "good").status_code == 200
        mended.touch()
        assert running.post("/admin/models/bad/load", {}).json()["quarantine"] is None
        eventually(lambda: state(running, "bad") == "resident")
        assert ask(running, "bad").status_code == 200
        assert running.get("/admin/status").json()["engine"]["quarantined"] == {}


# files


def test_what_is_damaged_unknown_or_too_large_fails_alone_says_why_and_leaves_nothing(tmp_path, parts):
    broken = {
        "cut": ("cut off or damaged", lambda folder: cut(folder / "model.safetensors")),
        "garbled": ("cut off or damaged", lambda folder: garble(folder / "model.safetensors")),
        "hollow": ("is not finite", lambda folder: fill(folder / "model.safetensors")),
        "unknown": ("Model type abacus not supported", lambda folder: change(folder, model_type="abacus")),
        "other": ("Missing 18 parameters", lambda folder: change(folder, num_hidden_layers=4)),
        "shard": ("2 of its weight files are not there", index),
    }
    pairs = {"good": (parts["target"], parts["draft"], {"preload": True})}
    for name, (_, spoil) in broken.items():
        folder = make(tmp_path / name)
        spoil(folder)
        pairs[name] = (folder, parts["draft"], {})
        pairs[f"{name}-draft"] = (parts["target"], folder, {})
    large = make(tmp_path / "large", max_position_embeddings=1 << 20)
    pairs["large"] = (large, None, {})
    why = {name: said for name, (said, _) in broken.items()}
    why |= {f"{name}-draft": said for name, said in why.items()}
    why["large"] = "memory.limit allows 48 MiB"
    with router(tmp_path, configuration(pairs, ("good",))) as running:
        assert speculative(ask(running, "good"))["active"] is True
        before = settled_bytes(running)
        for name, said in why.items():
            answer = ask(running, name)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
            seen = view(running, name)
            assert (seen["state"], seen["reserved_bytes"]) == ("failed", 0)
            assert said in seen["message"]
            assert seen["message"] in answer.json()["error"]["message"]
        assert "KV caches 1 GiB for 2 x 1048576 tokens" in view(running, "large")["message"]
        assert settled_bytes(running) == before
        assert speculative(ask(running, "good"))["active"] is True
        assert running.get("/readyz").status_code == 200

        # What is whole again is loaded when it is next tried; an operator need not wait.
        (tmp_path / "cut" / "model.safetensors").write_bytes((parts["target"] / "model.safetensors").read_bytes())
        assert running.post("/admin/models/cut/load", b"").status_code == 202
        eventually(lambda: state(running, "cut") == "resident")
        assert ask(running, "cut").status_code == 200
    assert "Traceback" not in running.log.read_text()


def settled_bytes(running):
    """The device's memory as of a heartbeat that began after everything before."""
    seen = []

    def twice_the_same():
        seen.append(running.get("/admin/models").json()["active_bytes"])
        return len(seen) > 75 and len(set(seen[-75:])) == 1

    eventually(twice_the_same)
    return seen[-1]


def cut(file):
    file.write_bytes(file.read_bytes()[:-1000])


def garble(file):
    data = bytearray(file.read_bytes())
    data[8:40] = b"\x00" * 32
    file.write_bytes(data)


def fill(file):
    """Every weight becomes a NaN; the header stays."""
    data = file.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    file.write_bytes(data[:start] + b"\xff" * (len(data) - start))


def change(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def index(folder):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


# two that fit only one at a time


def only_one_fits(parts):
    pairs = {"a": (parts["target"], parts["draft"], {}), "b": (parts["draft"], parts["target"], {})}
    return configuration(pairs).replace(str(LIMIT_BYTES), str(6 * 1024**2))


def test_twenty_clients_who_want_two_pairs_in_turn_are_all_served_without_a_load_for_each(tmp_path, parts):
    clients, turns = 20, 3
    answers = []
    with router(tmp_path, only_one_fits(parts)) as running:

        def client(number):
            for turn in range(turns):
                lane = "interactive" if number % 2 else "throughput"
                answers.append(ask(running, "ab"[(number + turn) % 2], lane))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * clients * turns
        assert all(found["in_use"] == found["waiting"] == 0 for found in running.get("/admin/models").json()["models"])
        assert loads(running) <= clients * turns / 4


def test_a_stream_outlives_the_wish_for_its_memory(tmp_path, parts):
    with router(tmp_path, only_one_fits(parts)) as running:
        late = []
        with running.sdk(**{"X-Opta-Lane": "throughput"}) as client:
            stream = client.completions.create(
                model="a", prompt="x", max_tokens=900, temperature=0, stream=True, logit_bias={"0": -100, "4": -100}
            )
            next(iter(stream))
            thread = threading.Thread(target=lambda: late.append(ask(running, "b")))
            thread.start()
            eventually(lambda: state(running, "a") == "leaving" or state(running, "b") == "waiting")
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        thread.join()
        assert late[0].status_code == 200
        assert (state(running, "a"), state(running, "b")) == ("absent", "resident")


def test_a_stream_goes_on_while_another_pair_is_loaded(tmp_path, parts):
    long = make(tmp_path / "long", max_position_embeddings=1 << 15)
    pairs = {"running": (long, None, {}), "coming": ("embedded:target", "embedded:draft", {})}
    chunks = []
    with (
        router(tmp_path, configuration(pairs).replace(str(LIMIT_BYTES), str(1 << 30))) as running,
        running.sdk(**{"X-Opta-Lane": "throughput"}) as client,
    ):
        stream = client.completions.create(
            model="running",
            prompt="x",
            max_tokens=30_000,
            temperature=0,
            stream=True,
            logit_bias={"0": -100, "4": -100},
        )

        def read():
            with contextlib.suppress(httpx.HTTPError, openai.APIError):
                chunks.extend(chunk for chunk in stream)

        reader = threading.Thread(target=read)
        reader.start()
        eventually(lambda: chunks)
        assert running.post("/admin/models/coming/load", b"").status_code == 202
        seen = []

        def is_loading():
            progress = view(running, "coming")["progress"]
            assert state(running, "coming") != "failed", view(running, "coming")["message"]
            seen.extend([progress] if progress and progress["stage"] in ("target", "draft", "calibrating") else [])
            return seen

        eventually(is_loading)
        before = len(chunks)
        eventually(lambda: state(running, "coming") == "resident")
        assert len(chunks) >= before + 20
        stages = (("target", "draft"), ("draft", "calibrating"), ("calibrating", None))
        assert (seen[0]["stage"], seen[0]["next"]) in stages
        assert seen[0]["done_bytes"] <= seen[0]["total_bytes"]
        assert view(running, "running")["in_use"] == 1
        stream.close()
        reader.join()


@pytest.mark.parametrize("swaps", [4, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_memory_does_not_grow_when_pairs_change_places(tmp_path, parts, swaps):
    with router(tmp_path, only_one_fits(parts)) as running:
        host = running.host_pid()
        first = None
        for _ in range(swaps):
            for here, there in ("ab", "ba"):
                assert running.post(f"/admin/models/{there}/unload", b"").status_code in (200, 202)
                assert ask(running, here).status_code == 200
            if first is None:
                first = settled_bytes(running), resident_bytes(host)
        last = settled_bytes(running), resident_bytes(host)
        assert last[0] <= first[0] * 1.05
        assert last[1] <= first[1] * 1.05
        assert loads(running) == 2 * swaps


def loads(running):
    return sum(": loaded " in line for line in running.log.read_text().splitlines())


# operators


def test_an_operator_loads_and_unloads_and_is_told_what_there_is_to_wait_for(tmp_path, parts):
    with router(tmp_path, configuration({"a": (parts["target"], parts["draft"], {"keep_alive": -1})})) as running:
        assert running.post("/admin/models/nobody/load", b"").status_code == 404
        started = running.post("/admin/models/a/load", b"")
        assert (started.status_code, started.json()["state"]) == (202, "preparing")
        eventually(lambda: state(running, "a") == "resident")
        seen = view(running, "a")
        assert (seen["pinned"], seen["in_use"], seen["message"]) == (True, 0, None)
        assert seen["load_s"] > 0
        assert running.post("/admin/models/a/load", b"").status_code == 200
        assert running.post("/admin/models/a/unload", b"").status_code == 202
        eventually(lambda: state(running, "a") == "absent")
        assert running.get("/admin/models").json()["reserved_bytes"] == 0
        assert ask(running, "a").status_code == 200
        assert "load of model a by " in running.log.read_text()
