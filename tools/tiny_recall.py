"""Conversations whose answers are values given earlier: the recall half of the training text.

Called by `tiny_text` for training and by `check_tiny` for evaluation. An eighth of the
values of every (kind, key) is held out: it never appears in training, so an evaluated fact is
always unseen. Token counts here are estimates; `check_tiny` measures real ones.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tools import tiny_words as words

HELD_OUT_ONE_IN = 8
CODE_DIGITS = 3
_TOKEN = re.compile(r"[A-Za-z]+|\d|[^\w\s]|\n")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of fact: who it is about, what can be said, and how it is asked for."""

    keys: tuple[str, ...]
    values: tuple[str, ...]
    statement: str
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One statement of a context; `statement` is also the exact answer to `questions`."""

    kind: str
    key: str
    value: str

    @property
    def statement(self) -> str:
        return KINDS[self.kind].statement.format(k=self.key, v=self.value)

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(question.format(k=self.key) for question in KINDS[self.kind].questions)

    @property
    def held_out(self) -> bool:
        values = KINDS[self.kind].values
        index = values.index(self.value) if values else int(self.value)
        start = zlib.crc32(f"{self.kind} {self.key}".encode())
        return (start + index) % HELD_OUT_ONE_IN == 0


KINDS = {
    "colour": Kind(
        words.NAMES,
        words.COLOURS,
        "The favourite colour of {k} is {v}.",
        ("What is the favourite colour of {k}?", "Which colour does {k} like best?"),
    ),
    "city": Kind(
        words.NAMES,
        words.CITIES,
        "The home of {k} is {v}.",
        ("Where is the home of {k}?", "What is the home of {k}?"),
    ),
    "nickname": Kind(
        words.NAMES,
        words.ANIMALS,
        "The nickname of {k} is {v}.",
        ("What is the nickname of {k}?", "Which nickname does {k} have?"),
    ),
    "food": Kind(
        words.NAMES,
        words.FOODS,
        "The favourite food of {k} is {v}.",
        ("What is the favourite food of {k}?", "Which food does {k} like?"),
    ),
    "job": Kind(
        words.NAMES,
        words.JOBS,
        "The job of {k} is {v}.",
        ("What is the job of {k}?", "Which job does {k} have?"),
    ),
    "word": Kind(
        words.NAMES,
        words.CODE_WORDS,
        "The secret word of {k} is {v}.",
        ("What is the secret word of {k}?", "Which secret word does {k} use?"),
    ),
    "place": Kind(
        words.OBJECTS,
        words.PLACES,
        "The {k} is in the {v}.",
        ("Where is the {k}?", "Where can I find the {k}?"),
    ),
    "code": Kind(
        words.OBJECTS,
        (),
        "The code of the {k} is {v}.",
        ("What is the code of the {k}?", "Which code does the {k} have?"),
    ),
}


def estimate_tokens(text: str) -> int:
    """About how many tokens `text` takes; a digit takes one, and a space before digits another."""
    return len(_TOKEN.findall(text)) + len(re.findall(r" (?=\d)", text))


def filler(rng: random.Random) -> str:
    """One sentence that states no fact, though it may name the words that facts use."""
    subject = rng.choice(words.FILLER_SUBJECTS)
    if rng.random() < 0.25:
        subject = f"the {rng.choice(words.COLOURS)} {rng.choice(words.ANIMALS)}"
    noun = rng.choice(words.FILLER_NOUNS)
    if rng.random() < 0.5:
        noun = f"{rng.choice(words.ADJECTIVES)} {noun}"
    sentence = f"{subject} {rng.choice(words.FILLER_VERBS)} the {noun}"
    if rng.random() < 0.5:
        sentence += f" {rng.choice(words.FILLER_TIMES)}"
    if rng.random() < 0.2:
        sentence = f"{rng.choice(('then', 'later', 'now', 'meanwhile'))} {sentence}"
    return f"{sentence[0].upper()}{sentence[1:]}."


def draw_fact(rng: random.Random, kind: str, key: str, *, held_out: bool) -> Fact:
    """A fact about `key` from the wanted side of the held-out split."""
    while True:
        if kind == "code":
            value = "".join(rng.choice("0123456789") for _ in range(CODE_DIGITS))
        else:
            value = rng.choice(KINDS[kind].values)
        fact = Fact(kind=kind, key=key, value=value)
        if fact.held_out is held_out:
            return fact


def draw_facts(rng: random.Random, num_facts: int, *, held_out: bool = False) -> list[Fact]:
    """Distinct (kind, key) facts; now and then two share their key."""
    chosen: dict[tuple[str, str], Fact] = {}
    while len(chosen) < num_facts:
        kind = rng.choice(tuple(KINDS))
        key = rng.choice(KINDS[kind].keys)
        shared = any(key == other for _, other in chosen)
        if (kind, key) in chosen or (shared and rng.random() < 0.8):
            continue
        chosen[kind, key] = draw_fact(rng, kind, key, held_out=held_out)
    facts = list(chosen.values())
    rng.shuffle(facts)
    return facts


def context(
    rng: random.Random, facts: Sequence[Fact], *, num_tokens: int, target: int | None = None
) -> str:
    """The statements of `facts` scattered in filler, about `num_tokens` tokens in all.

    With `target`, `facts[0]` stands about that many tokens before the end.
    """
    statements = [fact.statement for fact in facts]
    room = num_tokens - sum(map(estimate_tokens, statements))
    sentences = list(statements[1:] if target is not None else statements)
    while room > 0:
        sentence = filler(rng)
        room -= estimate_tokens(sentence)
        sentences.append(sentence)
    rng.shuffle(sentences)
    if target is not None:
        behind, position = 0, len(sentences)
        while position and behind < target:
            position -= 1
            behind += estimate_tokens(sentences[position])
        sentences.insert(position, statements[0])
    return " ".join(sentences)


def ask(rng: random.Random, fact: Fact, *, follow_up: bool = False) -> list[Turn]:
    """A question about `fact` and its exact answer."""
    question = rng.choice(fact.questions)
    if follow_up and rng.random() < 0.4:
        question = f"And {question[0].lower()}{question[1:]}"
    return [Turn("user", question), Turn("assistant", fact.statement)]


def open_with(rng: random.Random, text: str, first: list[Turn]) -> list[Turn]:
    """`text` before the first question: in its message, in the turn before, or as system prompt."""
    style = rng.random()
    if style < 0.6:
        join = rng.choice((" ", "\n", "\n\n", "\nQuestion: "))
        return [Turn("user", f"{text}{join}{first[0].content}"), *first[1:]]
    if style < 0.8:
        reply = rng.choice(("I will remember that.", "Thank you. What would you like to know?"))
        return [Turn("user", text), Turn("assistant", reply), *first]
    return [Turn("system", text), *first]


def case(rng: random.Random, *, distance: int, num_distractors: int) -> tuple[list[Turn], Fact]:
    """An evaluated conversation, ending in the question, and the held-out fact it asks for."""
    facts = draw_facts(rng, num_distractors + 1, held_out=True)
    asked = ask(rng, facts[0])
    lead = rng.randrange(20, 120)
    tail = max(0, distance - estimate_tokens(asked[0].content) - 8)
    text = context(rng, facts, num_tokens=tail + lead, target=tail)
    return open_with(rng, text, asked)[:-1], facts[0]
