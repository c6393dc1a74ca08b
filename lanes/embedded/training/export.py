"""Put the trained pair into the package: 8-bit weights, the tokenizer beside each, and the held-out prompts.

Eight bits halve what the package weighs and cost nothing that can be measured in the answers; a host on a CPU turns
them back into fp32 as it loads. Prompts are cut from held-out modules: the text up to a function's signature, no
longer than :data:`MAX_PROMPT_TOKENS`.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_lm import convert
from tokenizers import Tokenizer

from lanes import embedded

BITS, GROUP_SIZE = 8, 64
MAX_PROMPT_TOKENS = 192
MIN_PROMPT_TOKENS = 48
MIN_BODY_LINES = 8
PROMPTS = 32


def export(part: str, models: Path, tokenizer: Path, destination: Path) -> None:
    """Quantise one model into ``destination / part``, replacing what is there."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "fp16"
        shutil.copytree(models / part, source)
        for file in tokenizer.iterdir():
            shutil.copy(file, source)
        config_file = source / "config.json"
        config = json.loads(config_file.read_text("utf-8"))
        # Where Transformers keeps it today, and where mlx-lm looks for it.
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        for key in ("dtype", "transformers_version", "pad_token_id", "initializer_range", "pretraining_tp"):
            config.pop(key, None)
        config_file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        quantised = Path(scratch) / "quantised"
        convert(str(source), str(quantised), quantize=True, q_bits=BITS, q_group_size=GROUP_SIZE)
        target = destination / part
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
            shutil.copyfile(quantised / name, target / name)
        # As the corpus step wrote them: what a saving library adds changes from version to version.
        for file in tokenizer.iterdir():
            shutil.copyfile(file, target / file.name)


def prompts(held_out: Path, tokenizer: Tokenizer) -> Iterator[embedded.HeldOutPrompt]:
    """At most one prompt a module: the longest function whose beginning fits."""
    for line in held_out.read_text("utf-8").splitlines():
        module = json.loads(line)
        lines = module["text"].splitlines(keepends=True)
        functions = [
            node
            for node in ast.walk(ast.parse(module["text"]))
            if isinstance(node, ast.FunctionDef) and len(ast.unparse(node).splitlines()) >= MIN_BODY_LINES
        ]
        functions.sort(key=lambda node: (node.end_lineno or 0) - node.lineno, reverse=True)
        for node in functions:
            body = node.body[0].lineno - 1
            for first in range(max(0, body - 60), body):
                text = "".join(lines[first:body])
                size = len(tokenizer.encode(text).ids)
                if MIN_PROMPT_TOKENS <= size <= MAX_PROMPT_TOKENS:
                    yield embedded.HeldOutPrompt(f"{module['name']}:{node.name}", text)
                    break
            else:
                continue
            break


def main() -> None:
    """Export both models and the prompts; see the module's docstring."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(embedded.__file__).parent)
    arguments = parser.parse_args()
    for part in embedded.PARTS:
        export(part, arguments.models, arguments.data / "tokenizer", arguments.out)
    tokenizer = Tokenizer.from_file(str(arguments.data / "tokenizer" / "tokenizer.json"))
    chosen = list(prompts(arguments.data / "held_out.jsonl", tokenizer))[:PROMPTS]
    (arguments.out / "prompts.jsonl").write_text(
        "".join(json.dumps(prompt._asdict()) + "\n" for prompt in chosen), "utf-8"
    )
    size = sum(file.stat().st_size for part in embedded.PARTS for file in (arguments.out / part).iterdir())
    print(f"{len(chosen)} prompts, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
