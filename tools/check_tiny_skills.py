"""How often `models/tiny` calls tools, answers in JSON and thinks as it should.

`python -m tools.check_tiny_skills` prints the table of the model card. An answer counts only if
every token and the end are what greedy decoding would write. Invented tools are of
pairs of verb and noun that no training text has; other cases are new draws from the same words.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from tools import check_tiny, tiny_skills, tiny_tales, tiny_tools
from tools.tiny_recall import Turn

CASE_SEED = 8
MAX_ANSWER_TOKENS = 120


@dataclass(frozen=True, slots=True)
class Case:
    """A rendered prompt, thought opened if one is wanted, and the one right answer."""

    prompt: str
    answer: str


def case_of(turns: Sequence[Turn]) -> Case:
    """The last turn as the answer to those before it."""
    prompt, answer = check_tiny.render(turns[:-1]), turns[-1].content
    if answer.startswith("<think>\n"):
        prompt, answer = f"{prompt}<think>\n", answer.removeprefix("<think>\n")
    return Case(prompt, answer)


def called(
    rng: random.Random, draw: Callable[[random.Random], tiny_tools.Task], num_others: int,
    *, calls: int = 1, thinking: bool = False,
) -> Case:  # fmt: skip
    """A question for one of `num_others` + 1 tools."""
    while len((task := draw(rng)).calls) != calls:
        pass
    tools = tiny_tools.others(rng, num_others, but=task.tool)
    tools.insert(rng.randrange(len(tools) + 1), task.tool)
    answer = "\n".join(call.text for call in task.calls)
    turns = [
        tiny_skills.tools_turn(rng, tools), Turn("user", task.question), Turn("assistant", answer)
    ]  # fmt: skip
    hint = f"I use {task.tool.name}."
    return case_of(tiny_skills.think(turns, task.question, hint) if thinking else turns)


def answered(rng: random.Random) -> Case:
    """The results of a tool, to be said."""
    task = tiny_tools.draw_task(rng)
    tools = [task.tool, *tiny_tools.others(rng, 2, but=task.tool)]
    return case_of([
        tiny_skills.tools_turn(rng, tools), Turn("user", task.question),
        Turn("assistant", "\n".join(call.text for call in task.calls)),
        Turn("user", tiny_tools.result_text(task.results)),
        Turn("assistant", " ".join(map(tiny_tools.spoken, task.results))),
    ])  # fmt: skip


def unfit(rng: random.Random) -> Case:
    """A question whose tool is missing."""
    task = tiny_tools.draw_task(rng)
    tools = tiny_tools.others(rng, rng.randrange(1, 4), but=task.tool)
    turns = tiny_tales.exchange(task.question, tiny_skills.NO_TOOL)
    return case_of([tiny_skills.tools_turn(rng, tools), *turns])


def needless(rng: random.Random) -> Case:
    """A question about facts, with tools for other things."""
    tools = tiny_tools.others(rng, rng.randrange(1, 4), but=None)
    return case_of([tiny_skills.tools_turn(rng, tools), *tiny_skills.asked_fact(rng)])


SKILLS: dict[str, Callable[[random.Random], Case]] = {
    "a familiar tool of one": lambda rng: called(rng, tiny_tools.familiar, 0),
    "a familiar tool of four": lambda rng: called(rng, tiny_tools.familiar, 3),
    "an unseen tool of one": lambda rng: called(rng, _unseen, 0),
    "an unseen tool of four": lambda rng: called(rng, _unseen, 3),
    "two calls": lambda rng: called(rng, tiny_tools.familiar, 1, calls=2),
    "a thought, then a call": lambda rng: called(rng, tiny_tools.familiar, 2, thinking=True),
    "the answer from results": answered,
    "no tool fits": unfit,
    "no tool needed": needless,
    "JSON": lambda rng: case_of(tiny_skills.json_conversation(rng, held_out=True)),
    "a thought, then JSON": lambda rng: case_of(
        tiny_skills.json_conversation(rng, held_out=True, thinking=True)
    ),
    "a thought, then an answer": lambda rng: case_of(tiny_skills.thinking_chat(rng)),
}


def _unseen(rng: random.Random) -> tiny_tools.Task:
    return tiny_tools.invented(rng, held_out=True)


def draw_cases(skill: str, num_cases: int) -> list[Case]:
    rng = random.Random(f"{CASE_SEED} {skill}")
    return [SKILLS[skill](rng) for _ in range(num_cases)]


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str) -> str:
    """What the model adds to `prompt`, its tags and the end included."""
    ids = check_tiny.write(model, tokenizer.encode(prompt).ids, num_tokens=MAX_ANSWER_TOKENS)
    return str(tokenizer.decode(ids, skip_special_tokens=False))


@torch.no_grad()
def is_right(model: LlamaForCausalLM, tokenizer: Tokenizer, case: Case) -> bool:
    """Whether greedy decoding would write the answer: each right token is the likeliest next."""
    prompt = tokenizer.encode(case.prompt).ids
    answer = tokenizer.encode(f"{case.answer}<|im_end|>").ids
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return bool((logits.argmax(-1) == torch.tensor(answer)).all())


def share_right(
    model: LlamaForCausalLM, tokenizer: Tokenizer, skill: str, *, num_cases: int
) -> float:
    cases = draw_cases(skill, num_cases)
    return sum(is_right(model, tokenizer, case) for case in cases) / num_cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/tiny"))
    parser.add_argument("--cases", type=int, default=100, help="per skill")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model).backend_tokenizer
    model = LlamaForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    for skill in SKILLS:
        share = share_right(model, tokenizer, skill, num_cases=options.cases)
        print(f"{skill}: {share:.0%} of {options.cases}", flush=True)


if __name__ == "__main__":
    main()
