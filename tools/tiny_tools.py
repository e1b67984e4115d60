"""Tools, calls and results in made-up English: the tool-calling part of the training text.

Called by `tiny_skills` for training and by `check_tiny_skills` for evaluation. An eighth of the
(verb, noun) pairs that name invented tools is held out: no such tool is ever trained on.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tools import tiny_tool_kinds as kinds
from tools import tiny_words as words
from tools.tiny_tool_kinds import Result, Slot, Value

HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, slots=True)
class Parameter:
    """A named argument and its JSON type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Tool:
    """What a request would define under `tools`; every parameter is required."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]

    @property
    def signature(self) -> str:
        """The line that the chat template makes of it."""
        arguments = ", ".join(f"{each.name}: {each.type}" for each in self.parameters)
        return f"{self.name}({arguments}): {self.description}"

    def definition(self) -> dict[str, object]:
        """The entry of an OpenAI request."""
        properties = {each.name: {"type": each.type} for each in self.parameters}
        parameters = {
            "type": "object",
            "properties": properties,
            "required": [each.name for each in self.parameters],
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Call:
    """A tool's name and its arguments in the order of its parameters."""

    name: str
    arguments: tuple[tuple[str, Value], ...]

    @property
    def text(self) -> str:
        body = json.dumps({"name": self.name, "arguments": dict(self.arguments)})
        return f"<tool_call>\n{body}\n</tool_call>"


@dataclass(frozen=True, slots=True)
class Task:
    """A question, the one tool that answers it, and the calls it takes."""

    tool: Tool
    question: str
    calls: tuple[Call, ...]
    results: tuple[Result, ...]  # one per call


def is_held_out(verb: str, noun: str) -> bool:
    return zlib.crc32(f"{verb} {noun}".encode()) % HELD_OUT_ONE_IN == 0


def _make_task(
    rng: random.Random, tool: Tool, slots: Sequence[Slot], question: str, *, num_calls: int
) -> tuple[str, tuple[Call, ...]]:
    """The question filled in, and its calls; a second call changes the first argument."""
    values = [slot.draw(rng) for slot in slots]
    names = [parameter.name for parameter in tool.parameters]
    calls = [Call(tool.name, tuple(zip(names, values, strict=True)))]
    shown = [str(value) for value in values]
    if num_calls == 2:
        other = slots[0].draw(rng)
        while other == values[0]:
            other = slots[0].draw(rng)
        calls.append(Call(tool.name, ((names[0], other), *calls[0].arguments[1:])))
        shown[0] = f"{shown[0]} and {other}"
    return question.format(*shown), tuple(calls)


def familiar(rng: random.Random) -> Task:
    """A task for one of `kinds.SKILLS`, under one of its spellings."""
    skill = rng.choice(kinds.SKILLS) if rng.random() < 0.8 else kinds.SKILLS[0]
    parameters = tuple(Parameter(rng.choice(slot.names), slot.type) for slot in skill.slots)
    description = rng.choice(skill.descriptions) if rng.random() < 0.9 else ""
    tool = Tool(rng.choice(skill.names), description, parameters)
    several = len(skill.slots) == 1 and skill.slots[0] in kinds.SEVERAL
    num_calls = 2 if several and rng.random() < 0.2 else 1
    question, calls = _make_task(
        rng, tool, skill.slots, rng.choice(skill.questions), num_calls=num_calls
    )
    return Task(tool, question, calls, tuple(skill.result(rng) for _ in calls))


def invented(rng: random.Random, *, held_out: bool = False) -> Task:
    """A task for a tool named by a verb and a noun, with one or two arguments."""
    while True:
        verb, noun = rng.choice(words.VERBS), rng.choice(words.NOUNS)
        if is_held_out(verb, noun) is held_out:
            break
    chosen = rng.sample(kinds.INVENTED, rng.choice((1, 1, 2)))
    slots = [slot for slot, _ in chosen]
    parameters = tuple(Parameter(rng.choice(slot.names), slot.type) for slot in slots)
    article = rng.choice(("a", "the"))
    tool = Tool(f"{verb}_{noun}", f"{verb.capitalize()} {article} {noun}.", parameters)
    wish = f"{verb} the {noun} " + " ".join(
        phrase.format(f"{{{index}}}") for index, (_, phrase) in enumerate(chosen)
    )
    wish = rng.choice((f"{wish[0].upper()}{wish[1:]}.", f"Please {wish}.", f"Can you {wish}?",
                       f"I want to {wish}."))  # fmt: skip
    question, calls = _make_task(rng, tool, slots, wish, num_calls=1)
    keys = rng.sample(kinds.RESULT_KEYS, rng.choice((1, 1, 2)))
    result: dict[str, Value] = {
        key: rng.choice((kinds.phrase, kinds.up_to(1000)))(rng) for key in keys
    }
    return Task(tool, question, calls, (result,))


def draw_task(rng: random.Random) -> Task:
    return familiar(rng) if rng.random() < 0.55 else invented(rng)


def others(rng: random.Random, num_tools: int, *, but: Tool | None) -> list[Tool]:
    """Tools that do something else than `but`; half of them share its verb or noun."""
    chosen: list[Tool] = []
    taken = {signature_words(but)} if but else set()
    while len(chosen) < num_tools:
        tool = draw_task(rng).tool
        if signature_words(tool) not in taken:
            taken.add(signature_words(tool))
            chosen.append(tool)
    return chosen


def signature_words(tool: Tool) -> str:
    """What tells tools apart: spellings of one skill count as one tool."""
    for skill in kinds.SKILLS:
        if tool.name in skill.names:
            return skill.names[0]
    return tool.name


def system_text(tools: Sequence[Tool], said: str = "") -> str:
    """The content of the system turn that the chat template makes of `tools`."""
    listed = "\n".join(tool.signature for tool in tools)
    return f"{said}\n\n<tools>\n{listed}\n</tools>".removeprefix("\n\n")


def result_text(results: Sequence[Result]) -> str:
    """The content of the turn in which the chat template shows results."""
    shown = (each if isinstance(each, str) else json.dumps(each) for each in results)
    return "\n".join(f"<tool_response>\n{each}\n</tool_response>" for each in shown)


def spoken(result: Result) -> str:
    """A result as a sentence; a sentence stays as it is."""
    if isinstance(result, dict):
        return " ".join(f"The {key} is {value}." for key, value in result.items())
    return result if result.endswith(".") else f"The result is {result}."
