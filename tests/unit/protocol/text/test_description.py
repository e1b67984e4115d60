"""What a tokeniser's files say, gathered from wherever they lie."""

import json
from pathlib import Path

from protocol.text.description import describe_tokenizer


def test_special_tokens_are_texts_and_the_template_is_the_default_one(tmp_path: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"content": "</s>", "lstrip": False},
        "bos_token": None,
        "chat_template": [
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "plain"},
        ],
        "added_tokens_decoder": {},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    described = describe_tokenizer(tmp_path)
    assert described["eos_token"] == "</s>"
    assert described["chat_template"] == "plain"
    assert described["tokenizer_class"] == "PreTrainedTokenizerFast"
    (tmp_path / "chat_template.jinja").write_text("of a file")
    assert describe_tokenizer(tmp_path)["chat_template"] == "of a file"


def test_a_checkpoint_that_says_nothing_is_described_as_nothing(tmp_path: Path) -> None:
    assert describe_tokenizer(tmp_path) == {}
