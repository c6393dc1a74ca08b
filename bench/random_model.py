"""``python -m bench.random_model DIR``: a Llama of about three billion random bf16 weights, for measuring on a GPU.

Speed does not depend on what the weights are. The tokenizer is the embedded pair's, so that text goes in and comes out.

With ``--draft DIR`` a draft is made of its first layers, too, and what the target's other layers add to the residual
stream is damped, until the two choose the same token about seven times of ten: the acceptance of a real pair.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

from lanes import embedded

CONFIG: Final = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": [0],
    "bos_token_id": 0,
}
"""Llama 3.2 3B, but for the vocabulary, and for the output's own weights: with the input's, a random model only repeats
its last token."""

LAYERS: Final = 28

DRAFT_LAYERS: Final = 3
AGREEMENT: Final = 0.7
SHARPNESS: Final = 6.0
"""Factor of the output's weights: random logits are nearly uniform, and those of trained models are not."""

SAMPLE_TOKENS: Final = 1024
BISECTIONS: Final = 10

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer_config.json")


def write(directory: Path, draft: Path | None = None) -> tuple[int, float | None]:
    """Make the model, and a draft; returns the model's bytes, and how often the two agree."""
    import mlx.core as mx  # noqa: PLC0415

    model, config = _model(LAYERS)
    model.lm_head.weight = model.lm_head.weight * SHARPNESS
    agreement = None
    if draft is not None:
        smaller, smaller_config = _model(DRAFT_LAYERS)
        _share(model, smaller)
        agreement = _damp(model, smaller)
        _save(smaller, smaller_config, draft)
    size_bytes = _save(model, config, directory)
    mx.clear_cache()
    return size_bytes, agreement


def _model(layers: int) -> tuple[Any, dict[str, Any]]:
    import mlx.core as mx  # noqa: PLC0415
    from mlx_lm.models.llama import Model, ModelArgs  # noqa: PLC0415

    vocabulary = json.loads((embedded.path("target") / "config.json").read_text())["vocab_size"]
    config = {**CONFIG, "vocab_size": vocabulary, "num_hidden_layers": layers}
    model = Model(ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    return model, config


def _share(model: Any, draft: Any) -> None:
    """Let ``draft`` have the weights of the first layers, and those before and behind all layers."""
    draft.lm_head, draft.model.embed_tokens, draft.model.norm = (
        model.lm_head,
        model.model.embed_tokens,
        model.model.norm,
    )
    draft.model.layers = model.model.layers[:DRAFT_LAYERS]


def _damp(model: Any, draft: Any) -> float:
    """Damp the layers that ``draft`` lacks; returns how often both choose the same token then."""
    import mlx.core as mx  # noqa: PLC0415

    sample = mx.random.randint(5, model.args.vocab_size, (1, SAMPLE_TOKENS))
    drafted = mx.argmax(draft(sample)[0], axis=-1)
    parts = [part for layer in model.layers[DRAFT_LAYERS:] for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    whole = [part.weight for part in parts]
    low, high, agreement = 0.0, 1.0, 0.0
    for _ in range(BISECTIONS):
        damped = (low + high) / 2
        for part, weight in zip(parts, whole, strict=True):
            part.weight = weight * damped
        agree = mx.argmax(model(sample)[0], axis=-1) == drafted
        agreement = sum(agree.tolist()) / SAMPLE_TOKENS  # type: ignore[arg-type]
        low, high = (damped, high) if agreement > AGREEMENT else (low, damped)
    return agreement


def _save(model: Any, config: dict[str, Any], directory: Path) -> int:
    import mlx.core as mx  # noqa: PLC0415
    from mlx.utils import tree_flatten  # noqa: PLC0415

    directory.mkdir(parents=True, exist_ok=True)
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
    parser.add_argument("--draft", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    size_bytes, agreement = write(arguments.directory, arguments.draft)
    print(f"{size_bytes / 1e9:.2f} GB" + ("" if agreement is None else f", agreement {agreement:.2f}"))


if __name__ == "__main__":
    main()
