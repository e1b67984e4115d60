"""The model that ships calls tools, answers in JSON and thinks, as often as its card says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Tokenizer

from tools import check_tiny, check_tiny_skills, tiny_growth, tiny_tales, tiny_tools
from tools.tiny_recall import Turn

FOLDER = Path(__file__).parents[2] / "models" / "tiny"
CASES_PER_SKILL = 20
LEAST = {
    "a familiar tool of one": 0.7,
    "a familiar tool of four": 0.45,
    "an unseen tool of one": 0.8,
    "an unseen tool of four": 0.5,
    "a thought, then a call": 0.35,
    "the answer from results": 0.85,
    "no tool needed": 0.9,
    "JSON": 0.35,
    "a thought, then JSON": 0.15,
    "a thought, then an answer": 0.55,
}
"""Shares of the cases drawn here, a little below the card; what it cannot do is absent."""
WEATHER = tiny_tools.Tool(
    "get_weather", "Get the weather of a city.", (tiny_tools.Parameter("city", "string"),)
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    return model


def render(tokenizer: Tokenizer, messages: list[dict[str, Any]], **given: Any) -> str:
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **given
    )
    assert isinstance(text, str)
    return text


def test_tools_calls_and_results_are_rendered_as_they_were_trained_on(
    tokenizer: Tokenizer,
) -> None:
    rng = random.Random(2)
    while len((task := tiny_tools.familiar(rng)).calls) < 2:
        pass
    tools = [task.tool, *tiny_tools.others(rng, 2, but=task.tool)]
    functions = [{"name": call.name, "arguments": dict(call.arguments)} for call in task.calls]
    called = [{"type": "function", "function": function} for function in functions]
    results = [each if isinstance(each, str) else json.dumps(each) for each in task.results]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Use the tools."},
        {"role": "user", "content": task.question},
        {"role": "assistant", "content": None, "tool_calls": called},
        *({"role": "tool", "content": result} for result in results),
    ]
    turns = [
        Turn("system", tiny_tools.system_text(tools, "Use the tools.")),
        Turn("user", task.question),
        Turn("assistant", "\n".join(call.text for call in task.calls)),
        Turn("user", tiny_tools.result_text(task.results)),
    ]
    rendered = render(tokenizer, messages, tools=[tool.definition() for tool in tools])
    assert rendered == check_tiny.render(turns)


def test_arguments_given_as_text_are_rendered_as_they_are(tokenizer: Tokenizer) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{ "a":1}'}}
    asked: dict[str, Any] = {"role": "user", "content": "Hi"}
    messages = [asked, {"role": "assistant", "tool_calls": [call]}]
    assert '{"name": "f", "arguments": { "a":1}}' in render(tokenizer, messages)


def test_a_tool_is_shown_with_what_it_requires_alone(tokenizer: Tokenizer) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"type": "string"}},
        "required": ["city"],
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}},
             {"type": "function", "function": {"name": "g"}}]  # fmt: skip
    text = render(tokenizer, [{"role": "user", "content": "Hi"}], tools=tools)
    assert "<tools>\nf(city: string): \ng(): \n</tools>" in text


def test_thinking_is_off_unless_asked_for_and_thoughts_leave_the_history(
    tokenizer: Tokenizer,
) -> None:
    messages = [
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHello!"},
        {"role": "user", "content": "Who are you?"},
    ]
    plain = render(tokenizer, messages)
    assert "think" not in plain
    assert render(tokenizer, messages, enable_thinking=False) == plain
    assert render(tokenizer, messages, enable_thinking=True) == f"{plain}<think>\n"


def test_every_tag_is_one_token(tokenizer: Tokenizer) -> None:
    assert all(len(tokenizer.tokenize(tag)) == 1 for tag in tiny_growth.TAGS)


def test_evaluated_tools_are_never_in_the_training_text() -> None:
    rng = random.Random(5)
    trained_on = {tiny_tools.invented(rng).tool.name for _ in range(300)}
    evaluated = {tiny_tools.invented(rng, held_out=True).tool.name for _ in range(300)}
    assert len(evaluated) > 50
    assert not trained_on & evaluated


@pytest.mark.parametrize("skill", LEAST)
def test_a_skill_is_right_as_often_as_the_card_says(
    tokenizer: Tokenizer, model: LlamaForCausalLM, skill: str
) -> None:
    share = check_tiny_skills.share_right(
        model, tokenizer.backend_tokenizer, skill, num_cases=CASES_PER_SKILL
    )
    assert share >= LEAST[skill]


@pytest.mark.parametrize("num_tools", [1, 3])
def test_a_call_is_made_its_result_told_and_the_next_question_answered(
    tokenizer: Tokenizer, model: LlamaForCausalLM, num_tools: int
) -> None:
    others = tiny_tools.others(random.Random(4), num_tools - 1, but=WEATHER)
    turns = [
        Turn("system", tiny_tools.system_text([*others, WEATHER])),
        *tiny_tales.exchange("What is the weather in Rome?", ""),
    ][:-1]
    call = write(model, tokenizer, turns)
    assert call == tiny_tools.Call("get_weather", (("city", "Rome"),)).text
    turns += [Turn("assistant", call), Turn("user", tiny_tools.result_text(["It is sunny."]))]
    assert write(model, tokenizer, turns) == "It is sunny."


def test_small_talk_beside_a_tool_calls_nothing(
    tokenizer: Tokenizer, model: LlamaForCausalLM
) -> None:
    turns = [Turn("system", tiny_tools.system_text([WEATHER])), Turn("user", "Hello!")]
    assert "<tool_call>" not in write(model, tokenizer, turns)


def write(model: LlamaForCausalLM, tokenizer: Tokenizer, turns: list[Turn]) -> str:
    """What the model answers, which must end by itself."""
    text = check_tiny_skills.write(model, tokenizer.backend_tokenizer, check_tiny.render(turns))
    assert text.endswith("<|im_end|>")
    return text.removesuffix("<|im_end|>")
