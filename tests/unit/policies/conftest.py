"""Configurations from text, as operators write them."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from policies.errors import ConfigError
from policies.load import load
from policies.schema import Config

Load = Callable[[str], Config]
Refuse = Callable[[str], ConfigError]


@pytest.fixture
def load_text(tmp_path: Path) -> Load:
    def load_it(text: str) -> Config:
        file = tmp_path / "opta.yaml"
        file.write_text(dedent(text), encoding="utf-8")
        return load(file)

    return load_it


@pytest.fixture
def refusal(load_text: Load) -> Refuse:
    def refuse_it(text: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load_text(text)
        assert "\n" not in str(caught.value)
        return caught.value

    return refuse_it
