"""How much text a number of tokens can hold, so that what cannot fit is refused before it costs.

Judges a tokeniser by its parts; one that may drop text, or make one token of any length of it, has
no bound.
"""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers

KEEPING = frozenset({"NFC", "NFD", "NFKD", "NFKC", "Lowercase", "Prepend", "ByteLevel"})
"""Normalisers that drop nothing; composing makes one character of at most `MAX_COMPOSED`."""
MAX_COMPOSED = 4
CUTTING = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Split", "Punctuation"})
"""Pre-tokenisers that only cut, unless told to remove what they find."""


class TextTooLong(ValueError):
    """A text of more tokens than the context has, seen before all of it was read."""


def longest_token(raw: tokenizers.Tokenizer) -> int | None:
    """Characters of text that one token may stand for, at most; None where there is no bound."""
    vocab = raw.get_vocab()
    longest = max(map(len, vocab), default=1)
    for step in _steps(raw.normalizer):
        if step["type"] in ("NFC", "NFKC"):
            longest *= MAX_COMPOSED
        if step["type"] not in KEEPING and not _is_widening(step):
            return None
    cuts = list(_steps(raw.pre_tokenizer))
    if any(cut["type"] not in CUTTING or cut.get("behavior") == "Removed" for cut in cuts):
        return None
    if any(token.lstrip or token.rstrip for token in raw.get_added_tokens_decoder().values()):
        return None
    return longest if _knows_every_text(raw, cuts, vocab) else None


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """A normaliser or pre-tokeniser as its file describes it, sequences laid flat."""
    stack = [] if part is None else [json.loads(part.__getstate__())]
    while stack:
        step = stack.pop()
        inner = step.get("normalizers") or step.get("pretokenizers")
        if inner is None:
            yield step
        stack.extend(inner or ())


def _is_widening(step: dict[str, Any]) -> bool:
    match step:
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return len(new) >= len(old)
        case _:
            return False


def _knows_every_text(
    raw: tokenizers.Tokenizer, cuts: list[dict[str, Any]], vocab: dict[str, int]
) -> bool:
    """False where unknown characters are dropped, or any number of them is one token."""
    model: Any = raw.model
    if getattr(model, "byte_fallback", False):
        return all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    steps = [*cuts, *_steps(raw.normalizer)]
    by_bytes = any(step["type"] == "ByteLevel" for step in steps)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    return isinstance(model, tokenizers.models.BPE) and by_bytes and vocab.keys() >= set(alphabet)
