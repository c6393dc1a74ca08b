"""Models from a Hugging Face repository: fetched, pinned, offline, and where the disk has no room for them."""

import shutil
import subprocess

import pytest

from tests.e2e.processes import eventually
from tests.e2e.router_process import router
from tests.hub import hub
from tests.tiny_pairs import make

TEXT = "/v1/completions"
DISK_BYTES = 1024**2


def ask(running, model):
    return running.post(TEXT, {"model": model, "prompt": "x", "max_tokens": 2, "temperature": 0})


def message(running, model):
    return next(found["message"] for found in running.get("/admin/models").json()["models"] if found["name"] == model)


@pytest.fixture
def repository(tmp_path):
    """A hub with one repository, which holds more than a model."""
    folder = make(tmp_path / "repository")
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    with hub() as running:
        running.repositories["acme/tiny"] = folder
        yield running


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a tokenizer, and not for weights."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_repository_is_fetched_once_and_served_offline_a_revision_is_kept_to_and_an_unknown_one_is_named(
    tmp_path, repository
):
    pinned = f"acme/tiny@{repository.revision('acme/tiny')}"
    text = f"""
models:
  - {{name: tiny, target: acme/tiny, draft: "{pinned}"}}
  - {{name: absent, target: acme/absent}}
  - {{name: other, target: acme/tiny@v2}}
"""
    environment = {"HF_ENDPOINT": repository.url, "HF_HOME": str(tmp_path / "hf")}
    with router(tmp_path, text, environment) as running:
        assert ask(running, "tiny").status_code == 200
        for name, source in (("absent", "acme/absent"), ("other", "acme/tiny@v2")):
            refused = ask(running, name)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
            assert f"{source}: could not be fetched: RepositoryNotFoundError" in message(running, name)
    fetched = [path for path in repository.requests if path.startswith("GET /acme/")]
    assert len(fetched) == len(set(fetched)) == 4
    assert not any("evil" in path or "pytorch" in path for path in repository.requests)

    repository.requests.clear()
    with router(tmp_path, text, {**environment, "HF_HUB_OFFLINE": "1"}) as running:
        assert ask(running, "tiny").status_code == 200
        assert ask(running, "absent").status_code == 503
        assert "outgoing traffic has been disabled" in message(running, "absent")
    assert repository.requests == []


def test_a_disk_that_is_full_is_said_with_the_numbers_and_the_next_try_goes_on_where_it_ended(
    tmp_path, repository, small_disk
):
    text = "models: [{name: good, target: 'embedded:draft', preload: true}, {name: tiny, target: acme/tiny}]"
    environment = {"HF_ENDPOINT": repository.url, "HF_HOME": str(small_disk)}
    filler = small_disk / "filler"

    def fill(file):
        if file.suffix == ".safetensors" and not filler.exists():
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))

    with router(tmp_path, text, environment) as running:
        assert ask(running, "tiny").status_code == 503
        assert "are to be fetched to" in message(running, "tiny")
        assert "which has room for" in message(running, "tiny")

        # There is room when it begins, and none when it is half done.
        resize(small_disk, 8 * DISK_BYTES)
        repository.on_get = fill
        running.post("/admin/models/tiny/load", b"")
        eventually(lambda: "No space left on device" in (message(running, "tiny") or ""))
        assert ask(running, "good").status_code == 200

        filler.unlink()
        repository.on_get = lambda file: None
        running.post("/admin/models/tiny/load", b"")
        eventually(lambda: ask(running, "tiny").status_code == 200)


def resize(folder, size_bytes):
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(folder)], check=True)
