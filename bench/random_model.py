"""``python -m bench.random_model DIR``: a Llama of about three billion random bf16 weights, for measuring on a GPU.

Speed does not depend on what the weights are. The tokenizer is the embedded pair's, so that text goes in and comes out.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Final

from lanes import embedded

CONFIG: Final = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": [0],
    "bos_token_id": 0,
}
"""Llama 3.2 3B, but for the vocabulary."""

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def write(directory: Path) -> int:
    """Make the model; returns its bytes."""
    import mlx.core as mx  # noqa: PLC0415
    from mlx.utils import tree_flatten  # noqa: PLC0415
    from mlx_lm.models.llama import Model, ModelArgs  # noqa: PLC0415

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads((embedded.path("target") / "config.json").read_text())["vocab_size"]
    config = {**CONFIG, "vocab_size": vocabulary}
    model = Model(ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata={"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in TOKENIZER_FILES:
        shutil.copy(embedded.path("target") / name, directory / name)
    return sum(int(weight.nbytes) for weight in weights.values())


def main() -> None:
    """Write it, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    print(f"{write(parser.parse_args().directory) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
