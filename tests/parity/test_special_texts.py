"""Special tokens that are written in messages stay text; all other tokens are transformers'."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import CHATML, byte_level_tokenizer, write_checkpoint
from support.published_tokenizers import PUBLISHED
from support.tools import published_template
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from protocol.text.special_texts import SpecialTexts
from protocol.text.tokenizer import Tokenizer

TEMPLATES = json.loads(Path(__file__).with_name("chat_templates.json").read_text())
SPECIAL = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|end|>", "</think>"),
    *("<|assistant|>", "<|START_OF_TURN_TOKEN|>", "<｜User｜>", "<｜Assistant｜>"),
)
TOOL = {
    "name": "look <|im_end|>",
    "description": "<|eot_id|>",
    "parameters": {"type": "object", "properties": {}},
}


def tokenizer_of(path: Path, template: str) -> Tokenizer:
    raw = byte_level_tokenizer()
    raw.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    write_checkpoint(
        path,
        raw=raw,
        chat_template=template,
        bos_token="<s>",
        eos_token="</s>",
        max_context_tokens=4096,
    )
    return Tokenizer.load(path, max_model_len=None)


def chat_of(text: str) -> list[dict[str, Any]]:
    """With `text` wherever a client writes."""
    return [
        {"role": "user", "content": f"a{text}b"},
        {"role": "assistant", "content": f"said {text}"},
        {"role": "user", "content": text},
    ]


def special_ids(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    return [token_id for token_id in ids if tokenizer.is_special(token_id)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_message_holds_a_special_token_whatever_is_written_in_it(
    tmp_path: Path, name: str
) -> None:
    tokenizer = tokenizer_of(tmp_path, TEMPLATES[name]["source"])
    searched = tokenizer.chat_template.searched if tokenizer.chat_template else set()
    harmless = tokenizer.encode_chat(chat_of("x"))
    for text in SPECIAL:
        if text in searched:
            continue
        ids = tokenizer.encode_chat(chat_of(text))
        assert special_ids(tokenizer, ids) == special_ids(tokenizer, harmless), text
        rendered = tokenizer.render_chat(chat_of(text))
        assert tokenizer.decode(ids, skip_special_tokens=False) == rendered, text


def test_tools_documents_and_halves_of_tokens_hold_none_either(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, published_template("qwen3"))
    tool = {"type": "function", "function": TOOL}
    plain = [{"role": "user", "content": "x"}]
    expected = special_ids(tokenizer, tokenizer.encode_chat(plain, tools=[tool | {"function": {}}]))
    assert special_ids(tokenizer, tokenizer.encode_chat(plain, tools=[tool])) == expected
    joined = tokenizer_of(
        tmp_path, "{% for part in messages[0].content %}{{ part.text }}{% endfor %}<|im_end|>"
    )
    parts = [{"type": "text", "text": text} for text in ("<|im_", "end|>", "<", "s>")]
    ids = joined.encode_chat([{"role": "user", "content": parts}])
    assert joined.decode(ids, skip_special_tokens=False) == "<|im_end|><s><|im_end|>"
    assert len(special_ids(joined, ids)) == 1


def test_characters_of_nobodys_are_text_as_any(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, CHATML)
    text = "\uf8ff<|im_end|>\ue0001\ue001\uf8fe"
    ids = tokenizer.encode_chat([{"role": "user", "content": text}])
    assert text in tokenizer.decode(ids, skip_special_tokens=False)
    assert len(special_ids(tokenizer, ids)) == 3


def test_what_a_template_looks_for_in_an_answer_it_finds(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, published_template("deepseekv3"))
    thought = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "hm </think> Yes <|im_end|>"},
        {"role": "user", "content": "y"},
    ]
    shown = tokenizer.decode(tokenizer.encode_chat(thought), skip_special_tokens=False)
    assert "hm" not in shown and "Yes <|im_end|>" in shown


def test_a_setting_leaves_them_to_be_tokens(tmp_path: Path) -> None:
    tokenizer_of(tmp_path, CHATML)
    kept = Tokenizer.load(tmp_path, specials_in_chats="token")
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    chat = chat_of("<|im_end|>")
    assert kept.encode_chat(chat) == theirs.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_other_token_is_the_same_with_any_kind_of_tokeniser(name: str) -> None:
    raw = PUBLISHED[name]()
    ours, chance = SpecialTexts(raw), random.Random(name)
    special = [token.content for token in raw.get_added_tokens_decoder().values() if token.special]
    for _ in range(100):
        pieces = chance.choices(["Hi", " ", "  there\n", "é", "12", "<", "word", *special], k=8)
        prompt = "".join(pieces)
        theirs = raw.encode(prompt, add_special_tokens=False).ids
        assert ours.encode(prompt, "\uf8ff") == theirs, prompt
    special = [text for text in special if "unk" not in text.lower()]
    numbers = {raw.token_to_id(text) for text in special}
    for text in special:
        marked = ours.marked(f"a {text}b", "\uf8ff")
        ids = ours.encode(f"{special[0]}{marked}{special[-1]}", "\uf8ff")
        assert [one for one in ids if one in numbers] == [
            raw.token_to_id(special[0]),
            raw.token_to_id(special[-1]),
        ], text
