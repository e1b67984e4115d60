"""Special tokens that are written in a chat's messages, kept apart from those of its template.

Before a chat is rendered, a mark is put where a message has the text of a special token; in the
prompt only those without one are tokens. All else is cut into the same tokens as without this. A
token that a template puts together, half of it from a message's end, is kept apart too; one whose
first half is the template's own is not.
"""

import secrets
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

MARKS = range(0xF8FF, 0xDFFF, -1)
"""Of Unicode's private use: the first that a chat does not have is its mark."""
UNMARKED = frozenset({"role", "type"})
"""Keys whose values are words of ours."""
_TEXT = "?"
_UNKNOWN = "\U00013080"
"""A letter that models without bytes do not know."""


class SpecialTexts:
    """Of one tokeniser. Thread-safe."""

    def __init__(self, raw: tokenizers.Tokenizer) -> None:
        self._raw = raw
        self._added: Mapping[int, AddedToken] = raw.get_added_tokens_decoder()
        special = [token.content for token in self._added.values() if token.special]
        self._beginnings = {text[:size] for text in special for size in range(1, len(text))}
        self._longest = max(map(len, special), default=0)
        self._finder = tokenizers.Tokenizer(models.WordLevel({_TEXT: 0}, unk_token=_TEXT))
        """Cuts a text into added tokens and what lies between them, as the tokeniser does."""
        if raw.normalizer is not None:
            self._finder.normalizer = raw.normalizer
        self._finder.add_tokens(list(self._added.values()))
        found = self._finder.get_added_tokens_decoder().items()
        self._special = {number: token.content for number, token in found if token.special}

    def mark_for(self, *given: Any) -> str | None:
        """For the JSON values `given`; None if no special token is written in them."""
        texts = [text for value in given for text in _texts(value)]
        encodings = self._finder.encode_batch_fast(texts, add_special_tokens=False)
        written = any(not self._special.keys().isdisjoint(one.ids) for one in encodings)
        if not written and not any(map(self._begins, texts)):
            return None
        used = set().union(*map(set, texts))
        return next(char for number in MARKS if (char := chr(number)) not in used)

    def marked(self, value: Any, mark: str, *, but: Collection[str] = ()) -> Any:
        """JSON like `value`, where those special tokens that are not in `but` are marked."""
        match value:
            case str():
                return self._marked(value, mark, but)
            case list() | tuple():
                return [self.marked(each, mark, but=but) for each in value]
            case dict():
                return {
                    key: each if key in UNMARKED else self.marked(each, mark, but=but)
                    for key, each in value.items()
                }
            case _:
                return value

    def encode(self, prompt: str, mark: str) -> list[int]:
        """Token ids of a prompt with marks."""
        pieces, end = [], 0
        for start, text in self._written(prompt):
            if prompt[start - 1 : start] != mark:
                pieces += [prompt[end:start], self._stand_ins[text]]
                end = start + len(text)
        unmarked = "".join([*pieces, prompt[end:]]).replace(mark, "")
        (encoding,) = self._twin.encode_batch_fast([unmarked], add_special_tokens=False)
        return [own for number in encoding.ids for own in self._own_ids.get(number, (number,))]

    def _marked(self, text: str, mark: str, but: Collection[str]) -> str:
        pieces, end = [], 0
        for start, token in self._written(text):
            if token not in but:
                pieces += [text[end:start], mark]
                end = start
        return "".join([*pieces, text[end:], mark if self._begins(text) else ""])

    def _begins(self, text: str) -> bool:
        """Whether a special token may begin at the end of `text`."""
        sizes = range(1, min(self._longest, len(text) + 1))
        return any(text[-size:] in self._beginnings for size in sizes)

    def _written(self, text: str) -> Iterator[tuple[int, str]]:
        """Where which special tokens are."""
        (encoding,) = self._finder.encode_batch([text], add_special_tokens=False)
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            token = self._special.get(number)
            if token is not None:  # spaces around it may be part of it
                at = text.find(token, start, end)
                yield (start, text[start:end]) if at < 0 else (at, token)

    @cached_property
    def _stand_ins(self) -> dict[str, str]:
        """For the text of each special token: a token of the twin, which no client can guess."""
        secret = secrets.token_hex(16)
        special = [token.content for token in self._added.values() if token.special]
        return {text: f"{secret}z{index}z" for index, text in enumerate(special)}

    @cached_property
    def _twin(self) -> tokenizers.Tokenizer:
        """To it, special tokens are text and their stand-ins are tokens, which cut a text in the
        same way."""
        twin = tokenizers.Tokenizer(self._raw.model)
        if self._raw.normalizer is not None:
            twin.normalizer = self._raw.normalizer
        if self._raw.pre_tokenizer is not None:
            twin.pre_tokenizer = self._raw.pre_tokenizer
        twin.add_tokens([self._of_twin(token) for token in self._added.values()])
        return twin

    def _of_twin(self, token: AddedToken) -> AddedToken:
        if not token.special:
            return token
        return AddedToken(
            self._stand_ins[token.content],
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=False,
        )

    @cached_property
    def _own_ids(self) -> dict[int, tuple[int, ...]]:
        """Of the twin's tokens that have another number, or should not be there: a model of
        unigrams knows the text of a special token as one piece, which is cut in characters. What
        stands for unknown text is special too, and may be there."""
        ids: dict[int, tuple[int, ...]] = {}
        unknown, *_ = self._twin.encode_batch_fast([_UNKNOWN], add_special_tokens=False)
        for token in self._added.values():
            piece = self._raw.model.token_to_id(token.content)
            if token.special and piece is not None and piece not in unknown.ids:
                chars = self._twin.encode_batch_fast(list(token.content), add_special_tokens=False)
                ids[piece] = tuple(token_id for char in chars for token_id in char.ids)
        known = self._twin.get_vocab()
        for number, token in self._added.items():
            ids[known[self._of_twin(token).content]] = (number,)
        return ids


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list() | tuple():
            for each in value:
                yield from _texts(each)
        case dict():
            for key, each in value.items():
                if key not in UNMARKED:
                    yield from _texts(each)
