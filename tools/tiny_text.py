"""The training text of `models/tiny`: an endless, seeded stream of conversations.

Called by `train_tiny`. The same seed gives the same stream on every machine. The lengths asked
for are estimates (see `tiny_recall.estimate_tokens`); the trainer cuts what is too long.
`python -m tools.tiny_text --seed 1 --count 5` prints some.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

from tools import tiny_recall as recall
from tools import tiny_tales as tales
from tools.tiny_recall import Turn

SYSTEM_PROMPTS = (
    "You are Tiny, a small and helpful model.",
    "You are a helpful assistant.",
    "Answer in short sentences.",
    "You are Tiny. You answer questions and tell stories.",
)
QUESTION_TOKENS = 22
"""About what one follow-up question and its answer take, with the template around them."""


def recall_conversation(rng: random.Random, *, num_tokens: int) -> list[Turn]:
    """Facts in filler and as many questions as a fifth to a half of `num_tokens` hold."""
    num_questions = max(1, int(num_tokens * rng.uniform(0.2, 0.5) / QUESTION_TOKENS))
    room = max(12, num_tokens - num_questions * QUESTION_TOKENS - 8)
    most = max(1, room // 9)
    num_facts = rng.randrange(1, min(most, 40) + 1) if rng.random() < 0.7 else min(most, 6)
    facts = recall.draw_facts(rng, num_facts)
    asked = rng.sample(facts, min(num_questions, num_facts))
    turns = recall.open_with(
        rng, recall.context(rng, facts, num_tokens=room), recall.ask(rng, asked[0])
    )
    for fact in asked[1:]:
        turns += recall.ask(rng, fact, follow_up=True)
    return turns


def interrupted_conversation(rng: random.Random, *, num_tokens: int) -> list[Turn]:
    """Facts told first; stories, sums and lists between them and the questions."""
    facts = recall.draw_facts(rng, rng.randrange(1, 9))
    asked = rng.sample(facts, rng.randrange(1, len(facts) + 1))
    text = recall.context(rng, facts, num_tokens=rng.randrange(20, 40 + num_tokens // 4))
    turns = recall.open_with(rng, text, recall.ask(rng, asked[0]))
    spent = sum(recall.estimate_tokens(turn.content) + 5 for turn in turns)
    spent += len(asked) * QUESTION_TOKENS
    while spent < num_tokens:
        between = tales.any_exchange(rng)
        spent += sum(recall.estimate_tokens(turn.content) + 5 for turn in between)
        turns += between
        if asked[1:] and rng.random() < 0.3:
            turns += recall.ask(rng, asked.pop(), follow_up=True)
    for fact in asked[1:]:
        turns += recall.ask(rng, fact, follow_up=True)
    return turns


def chat(rng: random.Random) -> list[Turn]:
    """One to three short exchanges, sometimes under a system prompt, or a bare story."""
    turns = [Turn("system", rng.choice(SYSTEM_PROMPTS))] if rng.random() < 0.25 else []
    style = rng.random()
    if style < 0.04:
        return [Turn("plain", tales.story(rng)[-1].content)]
    if style < 0.14:
        return turns + tales.introduction(rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        turns += tales.any_exchange(rng)
    return turns


def conversation(rng: random.Random, *, num_tokens: int, recall_share: float) -> list[Turn]:
    """A recall conversation of about `num_tokens`, or a chat as short as it happens to be."""
    if rng.random() >= recall_share:
        return chat(rng)
    if num_tokens >= 200 and rng.random() < 0.25:
        return interrupted_conversation(rng, num_tokens=num_tokens)
    return recall_conversation(rng, num_tokens=num_tokens)


def stream(seed: int, *, num_tokens: int, recall_share: float) -> Iterator[list[Turn]]:
    """An endless stream of conversations of one length and mixture."""
    rng = random.Random(f"tiny {seed} {num_tokens} {recall_share}")
    while True:
        yield conversation(rng, num_tokens=num_tokens, recall_share=recall_share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--recall-share", type=float, default=0.5)
    options = parser.parse_args()
    source = stream(options.seed, num_tokens=options.tokens, recall_share=options.recall_share)
    for _ in range(options.count):
        for turn in next(source):
            print(f"[{turn.role}] {turn.content}")
        print()


if __name__ == "__main__":
    main()
