"""Real models of a few hundred kilobytes, with random weights and the embedded pair's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from lanes import embedded

VOCABULARY = 4096
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    "mamba": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "state_size": 8,
        "num_hidden_layers": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 8,
    },
    "gemma3_text": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "sliding_window": 64,
        "sliding_window_pattern": 2,
        "max_position_embeddings": 1024,
    },
}


def make(directory: Path, family: str = "llama", **config: Any) -> Path:
    """A model that mlx-lm loads, of one of the families above."""
    directory.mkdir(parents=True)
    settings = {"model_type": family, "vocab_size": VOCABULARY, "eos_token_id": 0, **CONFIGS[family], **config}
    (directory / "config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded.path("target") / name, directory)
    model_class, arguments_class = _get_classes(settings)
    model = model_class(arguments_class.from_dict(settings))
    mx.save_safetensors(str(directory / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return directory


def shifted(directory: Path) -> Path:
    """The same model, with two of its tokenizer's ids swapped: the same size, another vocabulary."""
    file = directory / "tokenizer.json"
    data = json.loads(file.read_text("utf-8"))
    vocabulary = data["model"]["vocab"]
    one, other = [token for token, number in vocabulary.items() if number in (300, 301)]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(data), "utf-8")
    return directory


def templated(directory: Path) -> Path:
    """The same model, with another chat template."""
    file = directory / "tokenizer_config.json"
    data = json.loads(file.read_text("utf-8"))
    data["chat_template"] = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    file.write_text(json.dumps(data), "utf-8")
    return directory
