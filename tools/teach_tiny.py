"""Teach a trained `models/tiny` tools, JSON and thinking: the second half of its making.

`python -m tools.teach_tiny --start build/first --work build/taught --out models/tiny`. Steps and
seed are fixed: on one version of torch and one kind of processor the same weights come out.
Run it again with the same `--work` to resume.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

from tools import tiny_growth, tiny_model, tiny_skills, tiny_text, tiny_tool_kinds
from tools.tiny_muon import Muon
from tools.train_tiny import PROMPT_SAMPLE, Run, rate_at, take_step

SEED = 21
SHORT, LONG = 256, 1440
RECOVERY_STEPS = 400
"""Steps after which it recalls again as it did before words were added."""
TOKENS_PER_STEP = 2048
PEAK = 0.8
"""Of the learning rates that `train_tiny` starts with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of whole conversations: ids, loss weights, and which conversation each token is of."""

    ids_RT: torch.Tensor
    weight_RT: torch.Tensor
    part_RT: torch.Tensor


def draw_row(
    rng: random.Random, tokenizer: Tokenizer, length: int, *, skill_share: float
) -> list[list[float]]:
    """Ids, weights and parts of one row; a conversation too long for the rest is cut."""
    ids: list[float] = []
    weights: list[float] = []
    parts: list[float] = []
    while len(ids) < length:
        if length == SHORT and rng.random() < skill_share:
            turns = tiny_skills.skill_conversation(rng)
        else:
            wanted = int(0.9 * (length - len(ids)))
            turns = tiny_text.conversation(
                rng, num_tokens=wanted, recall_share=0.5 if wanted > 60 else 0.0
            )
        more_ids, more_weights = tiny_model.encode(tokenizer, turns)
        parts += [1 + (parts[-1] if parts else 0)] * len(more_ids)
        ids += more_ids
        weights += more_weights
    return [ids[:length], weights[:length], parts[:length]]


def draw_batch(tokenizer: Tokenizer, step: int) -> Batch:
    """The batch of a step, whatever came before it."""
    rng = random.Random(f"{SEED} {step}")
    long_one_in, skill_share = (12, 0.7) if step < RECOVERY_STEPS else (30, 0.88)
    length = LONG if step % long_one_in == 0 else SHORT
    num_rows = max(2, TOKENS_PER_STEP // length)
    rows = [draw_row(rng, tokenizer, length, skill_share=skill_share) for _ in range(num_rows)]
    ids, weights, parts = zip(*rows, strict=True)
    return Batch(
        ids_RT=torch.tensor(ids, dtype=torch.long),
        weight_RT=torch.tensor(weights),
        part_RT=torch.tensor(parts),
    )


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean negative log likelihood, answers in full and a sample of the prompts.

    A token sees its own conversation alone.
    """
    same_RTT = batch.part_RT[:, :, None] == batch.part_RT[:, None, :]
    mask_RTT = same_RTT & torch.ones(same_RTT.shape[1:], dtype=torch.bool).tril()
    hidden_RTD = model.model(
        input_ids=batch.ids_RT, attention_mask=mask_RTT[:, None], use_cache=False
    ).last_hidden_state
    weight = batch.weight_RT[:, 1:].flatten()
    is_answer = weight > tiny_model.PROMPT_WEIGHT
    kept = is_answer | ((weight > 0) & (torch.rand_like(weight) < PROMPT_SAMPLE))
    logits = model.lm_head(hidden_RTD[:, :-1].flatten(0, 1)[kept])
    losses = functional.cross_entropy(logits, batch.ids_RT[:, 1:].flatten()[kept], reduction="none")
    scale = torch.where(is_answer, weight, weight / PROMPT_SAMPLE)[kept]
    return (losses * scale).sum() / scale.sum()


def teach(run: Run, tokenizer: Tokenizer, options: argparse.Namespace) -> Iterator[str]:
    """Take the steps that are left, saving now and then; yields lines of progress."""
    losses = list[float]()
    began, last = time.monotonic(), run.step
    while run.step < options.steps:
        torch.manual_seed(SEED + run.step)
        batch = draw_batch(tokenizer, run.step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(run.model, batch)
        rate = PEAK * rate_at(run.step / options.steps, run.step)
        losses.append(take_step(run, loss, rate=rate))
        if run.step % 50 == 0:
            spent = time.monotonic() - began
            mean, pace = sum(losses) / len(losses), spent / (run.step - last)
            yield f"step {run.step}, loss {mean:.4f}, {pace:.2f} s a step"
            losses, began, last = [], time.monotonic(), run.step
        if run.step % options.save_steps == 0:
            run.save(options.work / "run.pt")
    run.save(options.work / "run.pt")


def grown_tokenizer(old: Tokenizer) -> Tokenizer:
    """`old` with the words of what is to be learned, but for made-up ones: those stay in pieces."""
    rng = random.Random(SEED)
    text = (turn.content for _ in range(8000) for turn in tiny_skills.skill_conversation(rng))
    return tiny_growth.grow_tokenizer(old, (tiny_tool_kinds.MADE_UP.sub("", each) for each in text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, default=Path("build/first"))
    parser.add_argument("--work", type=Path, default=Path("build/taught"))
    parser.add_argument("--out", type=Path, default=Path("models/tiny"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save-steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export-only", action="store_true", help="export the last save")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = grown_tokenizer(Tokenizer.from_file(str(options.start / "tokenizer.json")))
    old = LlamaForCausalLM.from_pretrained(options.start, dtype=torch.float32)
    model = tiny_growth.grow_model(old, tokenizer, seed=SEED)
    run = Run(model=model, optimiser=Muon(model, dtype=torch.bfloat16))
    if (options.work / "run.pt").exists():
        run.load(options.work / "run.pt")
    options.out.mkdir(parents=True, exist_ok=True)
    tiny_model.export_tokenizer(tokenizer, options.out)
    if not options.export_only:
        for line in teach(run, tokenizer, options):
            print(line, flush=True)
    tiny_model.export_model(run.model, options.out)
    print(f"exported step {run.step} to {options.out}")


if __name__ == "__main__":
    main()
