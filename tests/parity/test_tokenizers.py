"""Tokenisers of published kinds encode as in transformers, and stream what they decode at once."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_checkpoint
from support.published_tokenizers import PUBLISHED, TEXTS
from transformers import PreTrainedTokenizerFast

from protocol.messages import Sampling
from protocol.text.tokenizer import TextState, Tokenizer

ODD = [
    "",
    " ",
    "   x",
    "\n\n \n x\r\n",
    "a\u0301\u0301 ﬁ ½ İ ß",
    "<|im_start|>user<|end|> <mask>  <l>x <r>  y<n> word wordy é東",
    "▁▁a ▁ <0x41> <0xE4>",
    "</s><s> <unk> [SEP] [CLS] ##a don't do not n't .",
    "\x00\x01\u200b\ufeff\U0010ffff",
    "1234567890 12,345.67 ٣٤",
    "  \t  0\t\t中   <",
    "👩\u200d👩\u200d👧🙂" * 3,
    "a" * 300 + " " * 300 + "\n" * 30,
]


@cache
def raw(name: str) -> Any:
    return PUBLISHED[name]()


def texts(name: str) -> list[str]:
    """Real ones, odd ones, and mixtures of their characters."""
    chance = random.Random(name)
    alphabet = sorted(set("".join(TEXTS + ODD)))
    mixed = ["".join(chance.choices(alphabet, k=40)) for _ in range(40)]
    spaced = ["".join(chance.choices(" \t\n0a<中'", k=25)) for _ in range(40)]
    return TEXTS + ODD + mixed + spaced


def first_eos(name: str) -> str:
    return (
        "[SEP]"
        if name == "BERT"
        else next(
            token for token in ("<|im_end|>", "<|end|>", "</s>") if raw(name).token_to_id(token)
        )
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_kinds_encode_and_decode_as_in_transformers(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, raw=raw(name), eos_token=first_eos(name), max_context_tokens=4096)
    ours = Tokenizer.load(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in texts(name):
        for special in (True, False):
            ids = ours.encode(text, add_special_tokens=special)
            assert ids == theirs.encode(text, add_special_tokens=special), text
            assert len(text) <= ours.max_chars(len(ids) or 1), text
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_streamed_is_what_is_decoded_at_once(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, raw=raw(name), eos_token=first_eos(name), max_context_tokens=4096)
    ours = Tokenizer.load(tmp_path)
    chance = random.Random(name)
    drawn = [
        [chance.randrange(ours.vocab_size) for _ in range(chance.randrange(1, 12))]
        for _ in range(200)
    ]
    encoded = [ours.encode(text, add_special_tokens=False) for text in texts(name)]
    by_bytes = "ByteFallback" in str(raw(name).decoder)
    sampling = Sampling(seed=1, max_tokens=9999, skip_special_tokens=False, ignore_eos=True)
    for ids in [*drawn, *encoded] if not by_bytes else encoded:
        state = TextState(ours, sampling)
        shown = "".join(state.feed(token_id).text for token_id in ids) + state.flush()
        whole = ours.decode(ids, skip_special_tokens=False)
        # The text goes on from a prompt: a first token's space counts, and its ## joins it.
        assert whole.removeprefix("##") in (shown, shown.removeprefix(" ")), ids
