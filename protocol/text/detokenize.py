"""Token ids to text, one token at a time, never splitting a character.

A tokeniser's decoder is reduced to one rule, the bytes of a token; text is the UTF-8 of those
bytes as they arrive. For byte-level tokenisers the deltas are, put together, exactly what
`tokenizers` decodes at once; for byte-fallback ones too, wherever the bytes are valid UTF-8,
except that a leading space the first token carries is kept: generated text continues a prompt, and
the space is part of it; for WordPiece likewise. Other decoders (CTC, suffixes) are refused.
"""

import codecs
import json
from collections.abc import Callable

import tokenizers

from protocol.errors import CheckpointError

ByteRule = Callable[[str], bytes]
"""The bytes a token of the vocabulary stands for."""

WORD_PIECE_CLEANUP = (
    *((f" {mark}", mark) for mark in ".?!,"),
    *((" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't")),
    *((" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""What `tokenizers` does to each piece, in its order."""


class TokenBytes:
    """The bytes of each token of one tokeniser. Thread-safe: it only ever fills a cache."""

    def __init__(self, raw: tokenizers.Tokenizer) -> None:
        self._raw = raw
        self._rule = _rule(raw)
        self._special = frozenset(
            token_id for token_id, token in raw.get_added_tokens_decoder().items() if token.special
        )
        self._cache: dict[int, bytes] = {}

    def __call__(self, token_id: int) -> bytes:
        """Empty for an id that is not in the vocabulary."""
        known = self._cache.get(token_id)
        if known is None:
            token = self._raw.id_to_token(token_id)
            known = self._cache[token_id] = b"" if token is None else self._rule(token)
        return known

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special


class Detokenizer:
    """One sequence's text so far. Not thread-safe."""

    def __init__(self, token_bytes: TokenBytes, *, skip_special_tokens: bool) -> None:
        self._token_bytes = token_bytes
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Characters this token completes; "" while one is unfinished."""
        if self._skip_special_tokens and self._token_bytes.is_special(token_id):
            return ""
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """U+FFFD when the last character was never finished."""
        return self._utf8.decode(b"", True)


def _rule(raw: tokenizers.Tokenizer) -> ByteRule:
    spec = None if raw.decoder is None else json.loads(raw.decoder.__getstate__())
    steps = spec["decoders"] if spec and spec["type"] == "Sequence" else [spec]
    kinds = [step and step["type"] for step in steps]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
        return _byte_level
    match steps:
        case [{"type": "WordPiece", "prefix": str(prefix), "cleanup": bool(cleanup)}]:
            return _word_piece(prefix, cleanup=cleanup)
    replacements: list[tuple[str, str]] = []
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Metaspace", "replacement": str(old)}:
                replacements.append((old, " "))
            case {"type": "Strip", "stop": 0} | {"type": "Fuse" | "ByteFallback"}:
                pass
            case _:
                raise CheckpointError(f"tokenizer.json: decoder {step!r} is not supported")
    return _byte_fallback(replacements)


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in token)
    except KeyError:  # an added token, kept as written
        return token.encode()


def _byte_fallback(replacements: list[tuple[str, str]]) -> ByteRule:
    def rule(token: str) -> bytes:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass  # a token that only looks like a byte
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return rule


def _word_piece(prefix: str, *, cleanup: bool) -> ByteRule:
    def rule(token: str) -> bytes:
        text = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        for old, new in WORD_PIECE_CLEANUP if cleanup else ():
            text = text.replace(old, new)
        return text.encode()

    return rule


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte (openai/gpt-2, `bytes_to_unicode`), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = {chr(byte): byte for byte in printable}
    return chars | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_level_alphabet()
