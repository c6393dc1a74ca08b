"""The documents hold to the code, and the code to the documents."""

import re
import tomllib
from pathlib import Path

import pytest

from bench.cli import main as bench
from opta_router.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def _commands(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(["--help"])
    assert stopped.value.code == 0
    return re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE)


def test_readme_names_every_command(capsys):
    commands = _commands(main, capsys)
    assert commands == ["serve", "top", "check", "probe", "explain", "key", "bench"]
    assert [command for command in commands if command not in README] == []


def test_the_benchmarks_own_readme_names_each(capsys):
    benchmarks = _commands(bench, capsys)
    assert "mixed" in benchmarks
    text = (ROOT / "bench" / "README.md").read_text("utf-8")
    assert [name for name in benchmarks if f"`bench {name}`" not in text] == []


def test_readme_names_every_folder():
    packages = [path.parent.name for path in ROOT.glob("*/__init__.py")]
    assert [folder for folder in [*packages, "deploy"] if f"`{folder}`" not in README] == []


def test_readme_names_every_kind_of_test_that_a_plain_run_leaves_out():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    markers = [marker.partition(":")[0] for marker in settings["markers"]]
    assert settings["addopts"][-2:] == ["-m", " and ".join(f"not {marker}" for marker in markers)]
    assert [marker for marker in markers if f"pytest -m {marker}" not in README] == []


def test_figures_that_the_documents_cite_are_there():
    cited = set()
    for document in ("README.md", "bench/README.md", "lanes/embedded/TRAINING.md", "policies/speculation.yaml"):
        cited |= set(re.findall(r"bench/results/[\w.-]+", (ROOT / document).read_text("utf-8")))
    assert cited
    assert [file for file in cited if not (ROOT / file).is_file()] == []


def test_the_configuration_to_start_from_is_valid():
    assert main(["check", "--config", str(ROOT / "deploy" / "opta.yaml")]) == 0
