"""Conversations that call tools, answer in JSON, or think first.

Called by `tiny_text` for training and by `check_tiny_skills` for evaluation. Turns hold what the
chat template renders: signatures between `<tools>`, results between `<tool_response>`, a thought
between `<think>` and `</think>` at the head of the last answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from tools import tiny_recall as recall
from tools import tiny_tales as tales
from tools import tiny_tool_kinds as kinds
from tools import tiny_tools as tool_text
from tools import tiny_words as words
from tools.tiny_recall import Turn
from tools.tiny_tool_kinds import Value
from tools.tiny_tools import Task, Tool

TYPES: dict[str, dict[str, object]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "array": {"type": "array", "items": {"type": "string"}},
}
NO_TOOL = "I have no tool for that."
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Tiny, a small and helpful model.",
    "Use the tools.",
)


def think(turns: Sequence[Turn], question: str, hint: str) -> list[Turn]:
    """`turns` with a thought at the head of the last answer."""
    *before, last = turns
    thought = f"<think>\nI am asked: {question}\n{hint}\n</think>\n\n"
    return [*before, Turn(last.role, thought + last.content)]


def tools_turn(rng: random.Random, tools: Sequence[Tool]) -> Turn:
    style = rng.random()
    said = rng.choice(SYSTEM_PROMPTS) if style < 0.35 else recall.filler(rng) if style < 0.5 else ""
    return Turn("system", tool_text.system_text(tools, said))


def call_turns(rng: random.Random, task: Task, *, thinking: bool) -> list[Turn]:
    """The question and its calls, and mostly the results and what is said of them."""
    calls = "\n".join(call.text for call in task.calls)
    turns = [Turn("user", task.question), Turn("assistant", calls)]
    if thinking and rng.random() < 0.6:
        return think(turns, task.question, f"I use {task.tool.name}.")
    if rng.random() < 0.35:
        return turns
    answer = " ".join(map(tool_text.spoken, task.results))
    turns += [Turn("user", tool_text.result_text(task.results)), Turn("assistant", answer)]
    return think(turns, task.question, "The tool has answered.") if thinking else turns


def tool_conversation(rng: random.Random, *, thinking: bool) -> list[Turn]:
    """One to five tools and a question that one of them, or none, is for."""
    style = rng.random()
    task = tool_text.draw_task(rng)
    num_others = min(rng.randrange(5), rng.randrange(5))
    tools = tool_text.others(rng, num_others, but=task.tool)
    if style < 0.14 and tools:
        turns = tales.exchange(task.question, NO_TOOL)
        turns = think(turns, task.question, "No tool fits.") if thinking else turns
        return [tools_turn(rng, tools), *turns]
    if style < 0.34 and tools:
        return [tools_turn(rng, tools), *plain_turns(rng, thinking=thinking)]
    tools.insert(rng.randrange(len(tools) + 1), task.tool)
    turns = [tools_turn(rng, tools)]
    if rng.random() < 0.2:
        turns += plain_turns(rng, thinking=False)
    return turns + call_turns(rng, task, thinking=thinking)


def plain_turns(rng: random.Random, *, thinking: bool) -> list[Turn]:
    """An exchange for which no tool exists and none is needed."""
    maker = rng.choice((tales.small_talk, tales.story, tales.listing, tales.knowledge, asked_fact))
    turns = maker(rng)
    question = turns[0].content.split("\n")[-1]
    return think(turns, question, "I need no tool.") if thinking else turns


def asked_fact(rng: random.Random) -> list[Turn]:
    facts = recall.draw_facts(rng, rng.randrange(1, 4))
    text = " ".join(fact.statement for fact in facts)
    question, answer = recall.ask(rng, facts[0])
    return tales.exchange(f"{text}\n{question.content}", answer.content)


Field = tuple[str, str, Value | list[str], str]  # key, JSON type, value, sentence


def draw_person(rng: random.Random, name: str, *, held_out: bool = False) -> list[Field]:
    """What can be said of a person, each with the key and type it has in JSON."""
    fields: list[Field] = []
    age = rng.randrange(1, 100)
    fields.append(("age", "integer", age, f"{name} is {age} years old."))
    for kind, keys in (("city", ("home",)), ("job", ("job",)), ("food", ("food", "favourite_food")),
                       ("colour", ("colour", "favourite_colour")),
                       ("nickname", ("nickname",))):  # fmt: skip
        fact = recall.draw_fact(rng, kind, name, held_out=held_out)
        fields.append((rng.choice(keys), "string", fact.value, fact.statement))
    foods = rng.sample(words.PLURAL_FOODS, 2)
    fields.append(("foods", "array", foods, f"{name} likes {foods[0]} and {foods[1]}."))
    home = next(field for field in fields if field[0] == "home")
    if rng.random() < 0.4:
        fields.remove(home)
        fields.append(("city", "string", home[2], f"{name} lives in {home[2]}."))
    job = next(field for field in fields if field[0] == "job")
    if rng.random() < 0.4:
        fields.remove(job)
        fields.append(("job", "string", job[2], f"{name} works as a {job[2]}."))
    return fields


def describe_schema(rng: random.Random, fields: Sequence[tuple[str, str]]) -> str:
    """A wish for JSON with these keys, in words, as an outline or as a JSON schema."""
    style = rng.random()
    if style < 0.4:
        keys = [f'"{key}"' if style < 0.2 else key for key, _ in fields]
        listed = " and ".join((", ".join(keys[:-1]), keys[-1])) if keys[1:] else keys[0]
        wish = rng.choice(("Answer in JSON with the keys {}.", "Give me JSON with {}.",
                           "Answer as JSON with {}."))  # fmt: skip
        return wish.format(listed)
    if style < 0.6:
        outline = ", ".join(f'"{key}": {kind}' for key, kind in fields)
        return f"Answer in JSON: {{{outline}}}"
    schema = {
        "type": "object",
        "properties": {key: TYPES[kind] for key, kind in fields},
        "required": [key for key, _ in fields],
    }
    if style < 0.75:
        del schema["required"]
    wish = rng.choice(("Answer in JSON with this schema: ", "Answer with this JSON schema:\n"))
    return wish + json.dumps(schema)


def json_conversation(
    rng: random.Random, *, thinking: bool = False, held_out: bool = False
) -> list[Turn]:
    """Facts of one or two people, and one of them asked for as JSON."""
    if rng.random() < 0.08:
        turns = json_list(rng)
        return think(turns, turns[0].content, "I answer in JSON.") if thinking else turns
    names = rng.sample(words.NAMES, 2)
    if rng.random() < kinds.MADE_UP_SHARE:
        names[0] = kinds.made_up(rng)
    people = {name: draw_person(rng, name, held_out=held_out) for name in names}
    fields = rng.sample(people[names[0]], rng.randrange(1, 5))
    told = [field[3] for field in fields]
    if rng.random() < 0.5:
        told += [field[3] for field in rng.sample(people[names[1]], rng.randrange(1, 4))]
    rng.shuffle(told)
    keys = [("name", "string", names[0], ""), *fields]
    rng.shuffle(keys) if rng.random() < 0.3 else None
    wish = describe_schema(rng, [(key, kind) for key, kind, *_ in keys])
    about = rng.choice(
        (f"Tell me about {names[0]}.", f"Describe {names[0]}.", f"Who is {names[0]}?")
    )
    text = " ".join(told)
    answer = json.dumps({key: value for key, _, value, _ in keys})
    if rng.random() < 0.3:
        turns = [Turn("system", wish), Turn("user", f"{text} {about}"), Turn("assistant", answer)]
    else:
        turns = tales.exchange(f"{text} {about} {wish}", answer)
    return think(turns, about, "I answer in JSON.") if thinking else turns


def json_list(rng: random.Random) -> list[Turn]:
    """Some members of a category, as JSON."""
    category = rng.choice(("animals", "colours", "cities", "foods", "jobs"))
    size = rng.randrange(2, 6)
    ask = rng.choice(
        ("Name {} {} in JSON.", "List {} {} as JSON.", "Give me {} {}. Answer in JSON.")
    )
    number = rng.choice((words.NUMBER_WORDS[size], str(size)))
    answer = json.dumps({category: list(words.CATEGORIES[category][:size])})
    return tales.exchange(ask.format(number, category), answer)


def thinking_chat(rng: random.Random) -> list[Turn]:
    """A question about facts, a sum or another exchange, with a thought before the answer."""
    style = rng.random()
    turns = [Turn("system", rng.choice(SYSTEM_PROMPTS[:2]))] if rng.random() < 0.2 else []
    if style < 0.45:
        facts = recall.draw_facts(rng, rng.randrange(1, 7))
        text = recall.context(rng, facts, num_tokens=rng.randrange(20, 150))
        asked = recall.ask(rng, facts[0])
        told = recall.open_with(rng, text, asked)
        return think(told, asked[0].content, f"I remember: {asked[1].content}")
    if style < 0.65:
        turns += tales.arithmetic(rng)
        return think(turns, turns[-2].content, "I count.")
    turns += tales.any_exchange(rng)
    return think(turns, turns[-2].content, "I answer.")


def skill_conversation(rng: random.Random) -> list[Turn]:
    """Tools, JSON or a thought, in the shares that training uses."""
    style = rng.random()
    if style < 0.6:
        return tool_conversation(rng, thinking=rng.random() < 0.2)
    if style < 0.83:
        return json_conversation(rng, thinking=rng.random() < 0.15)
    return thinking_chat(rng)


def main() -> None:
    rng = random.Random(1)
    for _ in range(12):
        for turn in skill_conversation(rng):
            print(f"[{turn.role}] {turn.content}")
        print()


if __name__ == "__main__":
    main()
