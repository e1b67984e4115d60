"""Published chat templates render as transformers renders them."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from transformers import PreTrainedTokenizerFast

from protocol.text.template.chat_template import ChatTemplate

PUBLISHED = json.loads(Path(__file__).with_name("chat_templates.json").read_text())
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = {
    "name": "get_weather",
    "description": 'Weather <now> & "later"',
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Städte"},
            "days": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]
DOCUMENTS = [{"title": "One", "text": "It rains."}, {"title": "Zwei", "text": "Ümlaut 🙂"}]
SYSTEM = {"role": "system", "content": " Be <brief> & kind.\n"}
USER = {"role": "user", "content": "Hi 🙂 é 👩\u200d👩\u200d👧\u200b\u2028x\n"}
ANSWER = {"role": "assistant", "content": "Hello.\n"}
ARGUMENTS = {"city": "Ulm", "days": [1, 2]}
CALL = {"id": "abcdefgh1", "type": "function"} | {
    "function": {"name": "get_weather", "arguments": ARGUMENTS}
}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RAIN = {"role": "tool", "tool_call_id": "abcdefgh1", "name": "get_weather", "content": "rain"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, USER],
    "developer": [{"role": "developer", "content": "Be terse."}, USER],
    "tool call": [SYSTEM, USER, CALLING, RAIN, ANSWER, USER],
    "empty": [{"role": "user", "content": ""}],
    "null": [USER, {"role": "assistant", "content": None}, USER],
    "thought": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, USER],
    "reasoning": [USER, {"role": "assistant", "content": "Yes.", "reasoning": "why"}, USER],
    "two in a row": [USER, USER],
    "named": [{"role": "user", "content": "x", "name": "Bob"}],
}
VARIABLES: list[dict[str, Any]] = [
    {},
    {"tools": TOOLS},
    {"documents": DOCUMENTS},
    {"enable_thinking": False, "add_generation_prompt": False},
    {"enable_thinking": True, "thinking": True, "tools": TOOLS},
]
ONE = {"type": "text", "text": "one"}
PARTS: list[dict[str, Any]] = [
    {"role": "user", "content": [ONE, {"type": "text", "text": " two\n"}]},
    {"role": "assistant", "content": [ONE]},
    {"role": "user", "content": [ONE, {"type": "text", "text": ""}]},
]
ONLY_PARTS = ("idefics3", "llava_next", "smolvlm")
"""They lose a text that is no list of parts, without a word."""
EITHER = (
    *("gemma3", "gemma4", "glm4moe", "llama3_2_vision", "llama4", "mistral_v7_tekken"),
    *("pixtral", "qwen2_5_vl", "qwen3_vl"),
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    path = write_checkpoint(tmp_path_factory.mktemp("tokens"), bos_token="<s>")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, eos_token="</s>")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def rendered(
    theirs: PreTrainedTokenizerFast,
    source: str,
    chat: list[dict[str, Any]],
    **variables: Any,
) -> str | None:
    """By transformers; None for an error."""
    given = {"add_generation_prompt": True, **variables}
    try:
        return str(theirs.apply_chat_template(chat, chat_template=source, tokenize=False, **given))
    except Exception:
        return None


def as_parts(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in chat
    ]


def as_text(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        message | {"content": "\n".join(part["text"] for part in message["content"])}
        for message in chat
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_render_as_in_transformers(
    theirs: PreTrainedTokenizerFast, name: str
) -> None:
    source = PUBLISHED[name]["source"]
    ours = ChatTemplate(source, special_tokens=TOKENS)
    num_rendered = 0
    for (kind, chat), variables in product(CHATS.items(), VARIABLES):
        seen = as_parts(chat) if name in ONLY_PARTS else chat
        expected = rendered(theirs, source, seen, **variables)
        if expected is None:
            with pytest.raises(ValueError, match="the chat template refused them"):
                ours.render(chat, **variables)
            continue
        num_rendered += 1
        assert ours.render(chat, **variables) == expected, (kind, variables)
    assert num_rendered >= 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_answer_that_has_begun_is_cut_where_transformers_cuts_it(
    theirs: PreTrainedTokenizerFast, name: str
) -> None:
    source = PUBLISHED[name]["source"]
    ours = ChatTemplate(source, special_tokens=TOKENS)
    for content in ("It is", " It is \n", "Hi", "", "<think>\nhm"):
        said: dict[str, Any] = {"role": "assistant", "content": content}
        seen = as_parts([USER, said]) if name in ONLY_PARTS else [USER, said]
        how = {"add_generation_prompt": False, "continue_final_message": True}
        expected = rendered(theirs, source, seen, **how)
        if expected is None:
            with pytest.raises(ValueError, match="messages: "):
                ours.render([USER, said], add_generation_prompt=False, continue_final=True)
        else:
            shown = ours.render([USER, said], add_generation_prompt=False, continue_final=True)
            assert shown == expected, content


@pytest.mark.parametrize("name", PUBLISHED)
def test_parts_are_shown_as_the_template_shows_parts_or_else_joined(
    theirs: PreTrainedTokenizerFast, name: str
) -> None:
    source = PUBLISHED[name]["source"]
    ours = ChatTemplate(source, special_tokens=TOKENS)
    seen = PARTS if name in ONLY_PARTS + EITHER else as_text(PARTS)
    expected = rendered(theirs, source, seen)
    assert expected is not None
    assert ours.render(PARTS) == expected
