"""Train the target, then distil the draft from it. One GPU, some minutes.

The draft learns the target's distribution on the corpus *and* on what the target itself writes (sequence-level
distillation: Kim and Rush, EMNLP 2016; on-policy data for drafts: Zhou et al., "DistillSpec", ICLR 2024): acceptance
depends on agreeing with the target where the target leads, not where the corpus does.

Writes one Hugging Face folder for each model (fp16 safetensors) and ``report.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 4096
END_OF_TEXT, END_OF_TURN = 0, 4
SHAPES: dict[str, dict[str, int]] = {
    "target": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 7,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    # Three layers: with two the draft cannot learn to repeat what the context has shown, and loses a fifth of its hits.
    "draft": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}
CHAT_SHARE = 0.15
LONG_SHARE = 0.15
WINDOW, LONG_WINDOW = 512, 2048
BATCH_TOKENS = 32_768


def build(name: str) -> Any:
    """An untrained Llama of that shape, tied embeddings, 8,192 positions."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        head_dim=64,
        max_position_embeddings=8192,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        bos_token_id=END_OF_TEXT,
        eos_token_id=[END_OF_TEXT, END_OF_TURN],
        attention_dropout=0.0,
        **SHAPES[name],
    )
    return LlamaForCausalLM(config).cuda()


def exported(directory: Path) -> Any:
    """The target as it is shipped, turned back from 8 bits: groups of 64 weights share a scale and a bias."""
    arrays = load_file(directory / "model.safetensors")
    state = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition(".")
        if kind in ("scales", "biases"):
            continue
        if f"{layer}.scales" in arrays:
            levels = array.view(torch.uint8).float()  # four to a uint32, the lowest byte first
            groups = levels.view(levels.shape[0], -1, 64)
            scales, biases = (arrays[f"{layer}.{part}"].float()[..., None] for part in ("scales", "biases"))
            state[name] = (groups * scales + biases).flatten(1)
        else:
            state[name] = array.float()
    model = build("target")
    model.load_state_dict(state, strict=False)  # the output layer is the embedding
    return model


class Data:
    """Random windows of the corpus, some of them conversations, some of them long."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.streams = {
            name: torch.from_numpy(np.load(directory / f"{name}.npy").astype(np.int64)).cuda()
            for name in ("train", "held_out", "chat")
        }

    def batch(self) -> torch.Tensor:
        """Token ids, shape ``(rows, window + 1)``."""
        window = LONG_WINDOW if self._rng.random() < LONG_SHARE else WINDOW
        rows = BATCH_TOKENS // window
        chats = round(rows * CHAT_SHARE)
        return torch.cat([self.windows("train", rows - chats, window), self.windows("chat", chats, window)])

    def windows(self, stream: str, rows: int, window: int) -> torch.Tensor:
        """``rows`` random windows of one stream."""
        ids = self.streams[stream]
        starts = torch.from_numpy(self._rng.integers(0, len(ids) - window - 1, rows)).cuda()
        return ids[starts[:, None] + torch.arange(window + 1, device="cuda")[None]]

    def held_out(self) -> Iterator[torch.Tensor]:
        """The held-out modules, in order."""
        ids = self.streams["held_out"]
        rows = ids[: len(ids) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
        yield from rows.split(64)


def fit(
    model: Any,
    loss_of: Callable[[], torch.Tensor],
    *,
    steps: int,
    peak: float,
    evaluate: Callable[[], float] | None = None,
) -> list[tuple[int, float]]:
    """AdamW with a cosine schedule; with ``evaluate``, keeps the weights of the best evaluation."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    history, best, best_state = [], math.inf, None
    started_s = time.monotonic()
    for step in range(steps):
        progress = step / steps
        warmup = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = peak * warmup * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if evaluate is not None and (step % 250 == 249):
            value = evaluate()
            history.append((step + 1, round(value, 4)))
            print(
                step + 1,
                f"train {loss.item():.3f} held out {value:.3f}",
                f"{time.monotonic() - started_s:.0f} s",
                flush=True,
            )
            if value < best:
                best, best_state = value, {k: v.detach().clone() for k, v in model.state_dict().items()}
        elif step % 500 == 499:
            print(step + 1, f"loss {loss.item():.4f}", f"{time.monotonic() - started_s:.0f} s", flush=True)
    if evaluate is not None:
        final = evaluate()
        history.append((step + 1, round(final, 4)))
        if best_state is not None and best < final:
            model.load_state_dict(best_state)
    return history


def train_target(data: Data, steps: int) -> tuple[Any, list[tuple[int, float]]]:
    """Next-token training on the corpus, stopped at the best held-out loss."""
    model = build("target")

    def loss_of() -> torch.Tensor:
        ids = data.batch()
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(ids[:, :-1]).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def evaluate() -> float:
        losses = []
        for ids in data.held_out():
            with torch.autocast("cuda", torch.bfloat16):
                logits = model(ids[:, :-1]).logits
            losses.append(F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).item())
        return sum(losses) / len(losses)

    return model, fit(model, loss_of, steps=steps, peak=1.5e-3, evaluate=evaluate)


@torch.no_grad()
def written_by(model: Any, prompts: torch.Tensor, length: int, temperature: float) -> torch.Tensor:
    """What the target writes after ``prompts``, prompt included; temperature 0 is greedy."""
    cache, ids, out = None, prompts, [prompts]
    for _ in range(length):
        with torch.autocast("cuda", torch.bfloat16):
            result = model(ids, past_key_values=cache, use_cache=True)
        cache, logits = result.past_key_values, result.logits[:, -1].float()
        ids = (
            logits.argmax(-1, keepdim=True)
            if temperature == 0
            else torch.multinomial((logits / temperature).softmax(-1), 1)
        )
        out.append(ids)
    return torch.cat(out, dim=1)


def own_writing(target: Any, data: Data, rows: int) -> torch.Tensor:
    """Rows of 320 tokens that the target wrote after 64 of the corpus: most greedy, some at temperature 0.7."""
    parts = []
    for start in range(0, rows, 1024):
        stream = "chat" if (start // 1024) % 4 == 3 else "train"
        prompts = data.windows(stream, 1024, 63)
        parts.append(written_by(target, prompts, 256, 0.7 if (start // 1024) % 3 == 2 else 0.0))
    return torch.cat(parts)


def distil(target: Any, data: Data, written: torch.Tensor, steps: int) -> Any:
    """A draft that imitates the target: half on the corpus, half on the target's own writing."""
    draft = build("draft")

    def loss_of() -> torch.Tensor:
        rows = written[torch.randint(len(written), (BATCH_TOKENS // 2 // 320,), device="cuda")]
        return (
            imitation(data.windows("train", 28, WINDOW))
            + imitation(data.windows("chat", 6, WINDOW)) * 0.3
            + 2 * imitation(rows)
        ) / 3.3

    def imitation(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            with torch.no_grad():
                teacher = target(ids[:, :-1]).logits
            student = draft(ids[:, :-1]).logits
        teacher, student = teacher.float().flatten(0, 1), student.float().flatten(0, 1)
        divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
        return divergence + 0.5 * F.cross_entropy(student, teacher.argmax(-1))

    fit(draft, loss_of, steps=steps, peak=3e-3)
    return draft


@torch.no_grad()
def agreement(target: Any, draft: Any, data: Data) -> float:
    """Share of the target's greedy tokens after held-out text that the draft would have proposed."""
    ids = written_by(target, next(data.held_out())[:, :128], 128, 0.0)
    with torch.autocast("cuda", torch.bfloat16):
        proposals = draft(ids[:, :-1]).logits.argmax(-1)
    return float((proposals[:, 127:] == ids[:, 128:]).float().mean())


def main() -> None:
    """Train everything; see the module's docstring."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", type=Path, help="an exported target: train the draft alone")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--draft-steps", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=12_288)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    data = Data(arguments.data, arguments.seed)
    started_s = time.monotonic()
    report: dict[str, Any] = {"seed": arguments.seed}
    if arguments.target is not None:
        target = exported(arguments.target)
    else:
        target, report["target_held_out_loss"] = train_target(data, arguments.steps)
        save(target, arguments.out / "target")
    target.requires_grad_(False).eval()
    written = own_writing(target, data, arguments.rows)
    print("written", tuple(written.shape), f"{time.monotonic() - started_s:.0f} s", flush=True)
    draft = distil(target, data, written, arguments.draft_steps)
    save(draft, arguments.out / "draft")
    report["draft_agreement"] = round(agreement(target, draft, data), 4)
    report["seconds"] = round(time.monotonic() - started_s)
    (arguments.out / "report.json").write_text(json.dumps(report) + "\n")
    print(json.dumps(report))


def save(model: Any, directory: Path) -> None:
    """fp16 safetensors, in parts of at most 14 MB."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(directory, state_dict=state, max_shard_size="14MB")


if __name__ == "__main__":
    main()
