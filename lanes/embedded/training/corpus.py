"""The corpus: the Python standard library's own source, split by whole modules, and the tokenizer trained on it.

Writes ``tokenizer/``, ``train.npy``, ``held_out.npy`` and ``chat.npy`` (token ids, uint16) and ``corpus.json`` (what
went in). ``chat.npy`` holds one request and answer after the other, made from functions and the first line of their
docstrings. Modules are held out by a hash of their path: neither tokenizer nor models see them.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
END_OF_TEXT, SYSTEM, USER, ASSISTANT, END_OF_TURN = SPECIAL = (
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
EXCLUDED = (
    "site-packages",
    "__pycache__",
    "pydoc_data",
    "encodings",
    "lib2to3",
    "bad_coding",
    "badsyntax",
    "tokenizedata",
)
HELD_OUT_OF = 32
MAX_FILE_BYTES = 400_000
MAX_ANSWER_CHARACTERS = 1600
REQUESTS = (
    "write a function that {verb}",
    "Write a function that {verb}.",
    "Write a Python function that {verb}",
    "write a python function {name} that {verb}",
    "Implement {name}: {summary}",
    "{summary}",
    "Please write a function `{name}` that {verb}.",
    "def {name}: {summary}",
)


# What a token never crosses: words with one leading space, digits in threes, punctuation, line ends, indentation.
PIECE = Regex(r" ?[A-Za-z_]+|\d{1,3}| ?[^\sA-Za-z_\d]+|\n+| +(?! )|\s+")


def modules(stdlib: Path) -> Iterator[tuple[str, str]]:
    """Path below ``stdlib`` and text of every module that parses, in order of path."""
    for file in sorted(stdlib.rglob("*.py")):
        name = file.relative_to(stdlib).as_posix()
        if any(part in name for part in EXCLUDED) or file.stat().st_size > MAX_FILE_BYTES:
            continue
        try:
            text = file.read_text("utf-8")
            ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        if text.strip():
            yield name, text


def is_held_out(name: str) -> bool:
    """True for about one module in :data:`HELD_OUT_OF`, and never for one that only serves tests."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT_OF == 0


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE: every text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECE, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def conversations(text: str, rng: random.Random) -> Iterator[str]:
    """Requests and answers from the documented functions of one module."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        source = "".join(lines[node.lineno - 1 : node.end_lineno]).rstrip()
        if not docstring or len(source) > MAX_ANSWER_CHARACTERS:
            continue
        summary = " ".join(docstring.split("\n\n")[0].split()).rstrip(".")
        if not 12 <= len(summary) <= 160:
            continue
        request = rng.choice(REQUESTS).format(name=node.name, summary=summary, verb=_third_person(summary))
        yield f"{USER}{request}{END_OF_TURN}{ASSISTANT}{textwrap.dedent(source)}{END_OF_TURN}"


def _third_person(summary: str) -> str:
    first, _, rest = summary.partition(" ")
    first = first.lower()
    if not first.endswith("s") and first.isalpha():
        first += "es" if first.endswith(("sh", "ch", "x")) else "s"
    return f"{first} {rest}"


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """``tokenizer.json`` and ``tokenizer_config.json``, as Transformers and mlx-lm read them."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": list(SPECIAL[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def main() -> None:
    """Build the corpus; see the module's docstring."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--stdlib", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)  # noqa: S311 - which phrase asks for which function

    everything = list(modules(arguments.stdlib))
    training = [(name, text) for name, text in everything if not is_held_out(name)]
    held_out = [(name, text) for name, text in everything if is_held_out(name)]
    tokenizer = train_tokenizer([text for _, text in training])
    save_tokenizer(tokenizer, arguments.out / "tokenizer")

    chats = [chat for _, text in training for chat in conversations(text, rng)]
    rng.shuffle(chats)
    sizes = {}
    parts = {
        "train": [text + END_OF_TEXT for _, text in training],
        "held_out": [text + END_OF_TEXT for _, text in held_out],
        "chat": chats,
    }
    for part, documents in parts.items():
        ids = [i for encoding in tokenizer.encode_batch(documents) for i in encoding.ids]
        np.save(arguments.out / f"{part}.npy", np.array(ids, dtype=np.uint16))
        sizes[part] = {"documents": len(documents), "tokens": len(ids)}
    facts = {
        "stdlib": arguments.stdlib.name,
        "sha256": hashlib.sha256("".join(name + text for name, text in everything).encode()).hexdigest(),
        "held_out": [name for name, _ in held_out],
        "sizes": sizes,
        "seed": arguments.seed,
    }
    (arguments.out / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    (arguments.out / "held_out.jsonl").write_text(
        "".join(json.dumps({"name": name, "text": text}) + "\n" for name, text in held_out), "utf-8"
    )
    print(json.dumps(facts["sizes"]))


if __name__ == "__main__":
    main()
