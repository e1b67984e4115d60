"""Prompts and token ids as they come: lists are told apart and counted as bytes.

Decoded, a hostile list would be many times larger than its bytes.
"""

import re
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_PROMPTS = 128
"""As many as OpenAI gives choices."""
MAX_TOKEN_IDS = 1 << 20
"""Given in one request, to continue or to turn into text."""
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Prompt = str | list[int]
_LIST = re.compile(rb"\[\s*(.)", re.DOTALL)
"""A list and how its first element, or its end, begins."""
_texts = msgspec.json.Decoder(list[str])
_one = msgspec.json.Decoder(str | Annotated[list[TokenId], Meta(min_length=1)])
_lists = msgspec.json.Decoder(list[Annotated[list[TokenId], Meta(min_length=1)]])
_token_ids = msgspec.json.Decoder(list[TokenId])


def read_prompts(raw: bytes, *, most: int = MAX_PROMPTS) -> tuple[Prompt, ...]:
    """A text, some texts, the token ids of one prompt, or of some. ValueError: too many."""
    kind = _LIST.match(raw)
    match kind and kind[1]:
        case b'"':
            num_quotes = raw.count(b'"') - raw.count(b'\\"')  # of a text two, or one at least
            _check_num_prompts(num_quotes // 2, most)
            texts = _texts.decode(raw)
            _check_num_prompts(len(texts), most)
            return tuple(texts)
        case b"[":
            _check_num_prompts(raw.count(b"[") - 1, most)
            _check_num_token_ids(raw)
            return tuple(_lists.decode(raw))
        case None:
            return (_one.decode(raw),)
        case _:
            _check_num_token_ids(raw)
            return (_one.decode(raw),)


def read_token_ids(raw: bytes) -> list[int]:
    """ValueError: too many."""
    _check_num_token_ids(raw)
    token_ids: list[int] = _token_ids.decode(raw)
    return token_ids


def _check_num_prompts(num: int, most: int) -> None:
    if num > most:
        raise ValueError(f"at most {most} prompts")


def _check_num_token_ids(raw: bytes) -> None:
    if raw.count(b",") >= MAX_TOKEN_IDS:
        raise ValueError(f"at most {MAX_TOKEN_IDS} token ids")
