"""The first half of making `models/tiny`, from nothing: text, tokenizer, weights, export.

`python -m tools.train_tiny --minutes 60 --work build/tiny --out build/first`; `teach_tiny` goes on
from there. Run it again with the same `--work` to resume. The seed is fixed and the text
deterministic; the schedule follows the clock, so weights differ between machines of another speed.
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

from tools import check_tiny, tiny_model, tiny_text
from tools.tiny_muon import Muon

SEED = 20
PROMPT_SAMPLE = 0.2
"""Share of prompt tokens whose loss is computed at all; the output layer is a fifth of a step."""
WARMUP_STEPS = 50
DECAY_FROM = 0.6
"""Constant learning rate for this share of the minutes, then linear to nearly nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of the curriculum, from `start` (share of the minutes) on."""

    start: float
    lengths: tuple[int, ...]  # of rows, in tokens; drawn uniformly per step
    tokens_per_step: int
    recall_share: float  # of rows that begin with facts to recall


PHASES = (
    Phase(start=0.0, lengths=(128, 256), tokens_per_step=2048, recall_share=0.6),
    Phase(start=0.2, lengths=(256, 512), tokens_per_step=4096, recall_share=0.55),
    Phase(start=0.45, lengths=(256, 512, 1440), tokens_per_step=4320, recall_share=0.5),
    Phase(start=0.75, lengths=(256, 512, 1440, 2048), tokens_per_step=4320, recall_share=0.45),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one length: `ids_RT` tokens and `weight_RT` of predicting each."""

    ids_RT: torch.Tensor
    weight_RT: torch.Tensor


class Feeder:
    """Endless batches, each drawn from its own seeded stream: step n is the same in any run."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def batch(self, step: int, phase: Phase) -> Batch:
        """Rows that begin with a recall conversation or a chat and are filled up with chats."""
        rng = random.Random(f"{SEED} {step}")
        length = rng.choice(phase.lengths)
        num_rows = max(1, phase.tokens_per_step // length)
        rows = [self._row(rng, length, phase) for _ in range(num_rows)]
        return Batch(
            ids_RT=torch.tensor([ids for ids, _ in rows]),
            weight_RT=torch.tensor([weights for _, weights in rows]),
        )

    def _row(self, rng: random.Random, length: int, phase: Phase) -> tuple[list[int], list[float]]:
        wanted = int(length * (rng.uniform(0.85, 1) if rng.random() < 0.7 else rng.uniform(0.2, 1)))
        share = phase.recall_share
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < length:
            turns = tiny_text.conversation(rng, num_tokens=int(wanted * 0.9), recall_share=share)
            more_ids, more_weights = tiny_model.encode(self._tokenizer, turns)
            ids += more_ids
            weights += more_weights
            share = 0.0
        return ids[:length], weights[:length]


def loss_of(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean negative log likelihood, answers in full and a sample of the prompts."""
    hidden_RTD = model.model(input_ids=batch.ids_RT, use_cache=False).last_hidden_state
    weight = batch.weight_RT[:, 1:].flatten()
    is_answer = weight > tiny_model.PROMPT_WEIGHT
    kept = is_answer | (torch.rand_like(weight) < PROMPT_SAMPLE)
    logits = model.lm_head(hidden_RTD[:, :-1].flatten(0, 1)[kept])
    losses = functional.cross_entropy(logits, batch.ids_RT[:, 1:].flatten()[kept], reduction="none")
    scale = torch.where(is_answer, weight, weight / PROMPT_SAMPLE)[kept]
    return (losses * scale).sum() / scale.sum()


def phase_at(progress: float) -> Phase:
    return [phase for phase in PHASES if phase.start <= progress][-1]


def rate_at(progress: float, step: int) -> float:
    """Learning-rate factor: linear warm-up, constant, linear decay to two per cent."""
    decay = min(1.0, max(0.02, (1 - progress) / (1 - DECAY_FROM)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * decay


@dataclass(slots=True, kw_only=True)
class Run:
    """The state a resumed run continues from; everything else follows from the seed."""

    model: LlamaForCausalLM
    optimiser: Muon
    step: int = 0
    spent_s: float = 0.0

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "spent_s": self.spent_s,
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.spent_s = state["step"], state["spent_s"]


def take_step(run: Run, loss: torch.Tensor, *, rate: float) -> float:
    """One update at a learning-rate factor; returns its loss."""
    run.optimiser.set_rate(rate)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimiser.step()
    run.optimiser.zero_grad()
    run.step += 1
    return float(loss.detach())


def train(run: Run, tokenizer: Tokenizer, options: argparse.Namespace) -> Iterator[str]:
    """Train until the minutes are spent, saving now and then; yields lines of progress."""
    feeder = Feeder(tokenizer)
    limit_s, reported_s, saved_s = options.minutes * 60, run.spent_s, run.spent_s
    num_tokens, losses = 0, list[float]()
    while run.spent_s < limit_s:
        began = time.monotonic()
        progress = run.spent_s / limit_s
        batch = feeder.batch(run.step, phase_at(progress))
        rate_now = rate_at(progress, run.step)
        losses.append(take_step(run, loss_of(run.model, batch), rate=rate_now))
        num_tokens += batch.ids_RT.numel()
        run.spent_s += time.monotonic() - began
        if run.spent_s - reported_s > 20:
            rate = num_tokens / (run.spent_s - reported_s)
            yield f"{run.spent_s / 60:.1f} min, step {run.step}, {rate:.0f} tokens/s, " + (
                f"length {batch.ids_RT.shape[1]}, loss {sum(losses) / len(losses):.4f}"
            )
            reported_s, num_tokens, losses = run.spent_s, 0, []
        if run.spent_s - saved_s > options.save_minutes * 60:
            run.save(options.work / "run.pt")
            saved_s = run.spent_s
            table = check_tiny.recall_table(run.model, tokenizer, num_cases=16)
            yield "recall " + ", ".join(f"{distance}: {share:.2f}" for distance, share in table)
    run.save(options.work / "run.pt")


def tokenizer_for(folder: Path) -> Tokenizer:
    """The tokenizer already in `folder`, else a new one trained on the first of the text."""
    if (folder / "tokenizer.json").exists():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    source = tiny_text.stream(SEED, num_tokens=200, recall_share=0.5)
    text = (turn.content for _ in range(12_000) for turn in next(source))
    tokenizer = tiny_model.train_tokenizer(text)
    tiny_model.export_tokenizer(tokenizer, folder)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--work", type=Path, default=Path("build/tiny"))
    parser.add_argument("--out", type=Path, default=Path("build/first"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--export-only", action="store_true", help="export the last save")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_for(options.out)
    model = tiny_model.new_model(SEED)
    run = Run(model=model, optimiser=Muon(model))
    if (options.work / "run.pt").exists():
        run.load(options.work / "run.pt")
    if not options.export_only:
        for line in train(run, tokenizer, options):
            print(line, flush=True)
    tiny_model.export_model(run.model, options.out)
    print(f"exported step {run.step} to {options.out}")


if __name__ == "__main__":
    main()
