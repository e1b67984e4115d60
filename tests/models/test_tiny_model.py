"""The model that ships is what its card says: small, loadable, talkative and able to recall."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tools import check_tiny, tiny_model, tiny_recall, tiny_text
from tools.tiny_recall import Turn

FOLDER = Path(__file__).parents[2] / "models" / "tiny"
MIB = 1024 * 1024
CASES_PER_DISTANCE = 20


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    dtype = getattr(torch, request.param)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype)
    assert isinstance(model, LlamaForCausalLM)
    return model


@pytest.fixture
def turns() -> list[Turn]:
    return [
        Turn("system", "Answer in short sentences."),
        Turn("user", "The key is in the barn. The home of Mira is Rome."),
        Turn("assistant", "I will remember that."),
        Turn("user", "Where is the key?"),
    ]


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def test_the_model_takes_at_most_sixteen_mebibytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 16 * MIB


def test_the_model_is_a_llama_with_grouped_queries_and_two_thousand_positions() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    assert 1 < config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_every_digit_is_a_token_of_its_own(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokenizer.tokenize("90210") == list("90210")


def test_the_template_renders_several_turns(
    tokenizer: PreTrainedTokenizerFast, turns: list[Turn]
) -> None:
    text = tokenizer.apply_chat_template(
        messages(turns), tokenize=False, add_generation_prompt=True
    )
    assert text == check_tiny.render(turns)
    assert text.count("<|im_end|>\n") == len(turns)
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_trainer_sees_the_tokens_the_template_makes(
    tokenizer: PreTrainedTokenizerFast, turns: list[Turn]
) -> None:
    rendered = tokenizer.apply_chat_template(messages(turns), tokenize=False)
    trained_on, _ = tiny_model.encode(tokenizer.backend_tokenizer, turns)
    assert trained_on == tokenizer.encode(rendered)


def test_the_same_seed_makes_the_same_training_text() -> None:
    first, second = (tiny_text.stream(3, num_tokens=300, recall_share=0.5) for _ in range(2))
    assert [next(first) for _ in range(20)] == [next(second) for _ in range(20)]


def test_evaluated_facts_are_never_in_the_training_text() -> None:
    rng = random.Random(5)
    trained_on = tiny_recall.draw_facts(rng, 200)
    evaluated = tiny_recall.draw_facts(rng, 200, held_out=True)
    assert not {fact.statement for fact in trained_on} & {fact.statement for fact in evaluated}


@pytest.mark.slow
def test_unseen_facts_up_to_1024_tokens_back_are_recalled_exactly(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    table = check_tiny.recall_table(
        model, tokenizer.backend_tokenizer, num_cases=CASES_PER_DISTANCE, generate=True
    )
    assert max(distance for distance, _ in table) == 1024
    assert sum(share for _, share in table) / len(table) >= 0.95, table


def test_a_follow_up_question_is_answered_from_the_same_context(
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    turns: list[Turn],
) -> None:
    assert answer(model, tokenizer, turns) == "The key is in the barn."
    turns += [
        Turn("assistant", "The key is in the barn."),
        Turn("user", "Where is the home of Mira?"),
    ]
    assert answer(model, tokenizer, turns) == "The home of Mira is Rome."


def test_a_story_is_several_sentences_and_ends(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    story = answer(model, tokenizer, [Turn("user", "Tell me a story about a fox.")])
    assert "fox" in story
    assert 4 <= story.count(".") <= 16


def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    turns: Sequence[Turn],
) -> str:
    """What the model writes greedily, which must end by itself."""
    prompt = tokenizer.encode(check_tiny.render(turns))
    new = check_tiny.write(model, prompt, num_tokens=250)
    assert new[-1] == tokenizer.eos_token_id
    return str(tokenizer.decode(new[:-1]))
