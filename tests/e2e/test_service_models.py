"""Pairs of every kind through the real stack: what is served, what is refused and why, and what is left of it."""

import json
import struct

from tests.e2e.model_views import LIMIT_BYTES, ask, configuration, settled_bytes, speculative, state, view
from tests.e2e.processes import eventually
from tests.e2e.router_process import router
from tests.tiny_pairs import make


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
        assert "loading" not in running.said()
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
    assert "Traceback" not in running.said()


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
