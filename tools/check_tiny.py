"""How often `models/tiny` recalls a fact exactly, by how far back the fact stands.

Called by `train_tiny` while training and by the model's test; `python -m tools.check_tiny` prints
the table of the model card. Cases come from the held-out facts of `tiny_recall`: none was trained
on. An answer counts only if every token and the end of the answer are right.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from tools import tiny_recall as recall
from tools.tiny_recall import Turn

DISTANCES = (64, 256, 512, 1024)
"""Upper ends of the distance buckets, in tokens."""
TOLERANCE = 0.9
"""A case belongs to a bucket if its distance is between this share of the bucket's end and it."""
MAX_ANSWER_TOKENS = 24
CASE_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A prompt, its one right answer, and how many tokens back the value stands."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]  # ends with the end-of-turn token
    kind: str
    distance: int


def render(turns: Sequence[Turn]) -> str:
    """The chat template's text, with the assistant's header at the end."""
    body = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    return f"{body}<|im_start|>assistant\n"


def draw_case(rng: random.Random, tokenizer: Tokenizer, distance: int) -> Case:
    """An unseen case whose value stands `TOLERANCE * distance` to `distance` tokens back."""
    aim = distance
    while True:
        turns, fact = recall.case(rng, distance=aim, num_distractors=rng.randrange(2, 9))
        text = render(turns)
        value_ends = text.index(fact.statement) + len(fact.statement) - 1
        encoding = tokenizer.encode(text)
        position = sum(end <= value_ends for _, end in encoding.offsets)
        behind = len(encoding.ids) - position
        if TOLERANCE * distance <= behind <= distance:
            answer = tokenizer.encode(f"{fact.statement}<|im_end|>").ids
            return Case(
                prompt=tuple(encoding.ids), answer=tuple(answer), kind=fact.kind, distance=behind
            )
        aim += round((0.95 * distance - behind) * rng.uniform(0.5, 1))
        aim = max(8, aim)


def draw_cases(tokenizer: Tokenizer, *, distance: int, num_cases: int) -> list[Case]:
    rng = random.Random(f"{CASE_SEED} {distance}")
    return [draw_case(rng, tokenizer, distance) for _ in range(num_cases)]


@torch.no_grad()
def is_recalled(model: LlamaForCausalLM, case: Case) -> bool:
    """Whether greedy decoding would write the answer: each right token is the likeliest next."""
    ids = torch.tensor([case.prompt + case.answer])
    logits = model(input_ids=ids, use_cache=False).logits[:, -len(case.answer) - 1 : -1]
    return bool((logits.argmax(-1) == ids[:, -len(case.answer) :]).all())


def is_generated(model: LlamaForCausalLM, case: Case) -> bool:
    """Whether `generate` writes the answer and stops, through the KV cache."""
    return write(model, case.prompt, num_tokens=MAX_ANSWER_TOKENS) == list(case.answer)


@torch.no_grad()
def write(model: LlamaForCausalLM, prompt: Sequence[int], *, num_tokens: int) -> list[int]:
    """Up to `num_tokens` tokens that `generate` adds to `prompt` greedily, the end included."""
    ids = torch.tensor([list(prompt)])
    generate: Any = model.generate  # its types change from release to release
    written = generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False
    )
    return [int(token) for token in written[0, ids.shape[1] :]]


def recall_table(
    model: LlamaForCausalLM, tokenizer: Tokenizer, *, num_cases: int, generate: bool = False
) -> list[tuple[int, float]]:
    """(distance, share of exact answers) for each bucket."""
    judge = is_generated if generate else is_recalled
    table = []
    for distance in DISTANCES:
        cases = draw_cases(tokenizer, distance=distance, num_cases=num_cases)
        table.append((distance, sum(judge(model, case) for case in cases) / num_cases))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--cases", type=int, default=100, help="per distance")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model).backend_tokenizer
    for dtype in (torch.float32, torch.bfloat16):
        model = LlamaForCausalLM.from_pretrained(options.model, dtype=dtype)
        for distance, share in recall_table(
            model, tokenizer, num_cases=options.cases, generate=True
        ):
            print(f"{dtype}, up to {distance} tokens back: {share:.1%} of {options.cases}")


if __name__ == "__main__":
    main()
