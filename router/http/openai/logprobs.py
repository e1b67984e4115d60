"""Log probabilities in the shapes of the two endpoints, of generated tokens and of a prompt's.

Every sampled token has an entry, also the one that ended the request and those whose text a stop
string removed.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from protocol.messages import Token, TokenLogprob
from protocol.readings import TokenScore
from protocol.text.detokenize import Detokenizer
from protocol.text.tokenizer import Tokenizer
from router.requests.events import Scored

FLOOR = -9999.0
"""Stands for minus infinity, which JSON cannot hold; OpenAI's value."""
Entry = dict[str, Any]


class Logprobs(Protocol):
    """Of one choice. `entry` is called once per token, in order."""

    def entry(self, token: Token) -> Any: ...

    def join(self, entries: Sequence[Any]) -> Entry:
        """The `logprobs` object of a choice or of a chunk."""


class ChatLogprobs:
    """`content: [{token, logprob, bytes, top_logprobs}]`"""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def entry(self, token: Token) -> msgspec.Raw:
        """As bytes: a whole answer's entries wait in a third of the memory that objects take."""
        top = [self._one(other.token_id, other.logprob) for other in token.top]
        whole = self._one(token.token_id, token.logprob) | {"top_logprobs": top}
        return msgspec.Raw(msgspec.json.encode(whole))

    def join(self, entries: Sequence[msgspec.Raw]) -> Entry:
        return {"content": list(entries), "refusal": None}

    def _one(self, token_id: int, logprob: float | None) -> Entry:
        return {
            "token": as_id(token_id) if self._as_ids else self._tokenizer.token_text(token_id),
            "logprob": _finite(logprob),
            "bytes": list(self._tokenizer.token_bytes(token_id)),
        }


class TextLogprobs:
    """`tokens`, `token_logprobs`, `top_logprobs` and `text_offset`, one element a token.

    Offsets count characters of the choice's text. A token that is part of a character is
    written `bytes:\\xe6\\x9d`, as OpenAI does.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._text = Detokenizer(tokenizer.token_bytes, skip_special_tokens=skip_special_tokens)
        self._offset = 0

    def first_entry(self, token_id: int) -> Entry:
        """Of a prompt's first token, which nothing comes before."""
        self._offset += len(self._text.feed(token_id))
        shown = {"tokens": self._name(token_id), "text_offset": 0}
        return shown | {"token_logprobs": None, "top_logprobs": None}

    def entry(self, token: Token) -> Entry:
        name = self._name(token.token_id)
        top = {self._name(other.token_id): _finite(other.logprob) for other in token.top}
        top.setdefault(name, _finite(token.logprob))
        offset = self._offset
        self._offset += len(self._text.feed(token.token_id))
        return {
            "tokens": name,
            "token_logprobs": _finite(token.logprob),
            "top_logprobs": msgspec.Raw(msgspec.json.encode(top)),
            "text_offset": offset,
        }

    def join(self, entries: Sequence[Entry]) -> Entry:
        columns = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
        return {column: [entry[column] for entry in entries] for column in columns}

    def _name(self, token_id: int) -> str:
        if self._as_ids:
            return as_id(token_id)
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def as_id(token_id: int) -> str:
    """vLLM's way to name a token whose text does not tell it."""
    return f"token_id:{token_id}"


def echoed_entries(logprobs: TextLogprobs, scored: Scored, *, num_top: int) -> list[Entry]:
    """Of `TextLogprobs.join`. To be called for each `Scored`, in order."""
    return [logprobs.entry(_as_token(score, num_top)) for score in scored.scores]


class ListedScores:
    """Of one choice: null, then of each token `{id: {logprob, rank, decoded_token}}`."""

    def __init__(self, tokenizer: Tokenizer, *, num_top: int) -> None:
        self._tokenizer, self._num_top = tokenizer, num_top
        self.entries: list[Any] = [None]

    def add(self, scored: Scored) -> None:
        """As bytes: an answer's entries wait in a third of the memory that objects take."""
        for score in scored.scores:
            self.entries.append(msgspec.Raw(msgspec.json.encode(dict(self._shown(score)))))

    def _shown(self, score: TokenScore) -> Iterator[tuple[str, Entry]]:
        yield self._one(score.token_id, score.logprob, score.rank)
        for place, (token_id, logprob) in enumerate(score.top[: self._num_top]):
            if token_id != score.token_id:
                yield self._one(token_id, logprob, place + 1)

    def _one(self, token_id: int, logprob: float, rank: int) -> tuple[str, Entry]:
        text = self._tokenizer.token_text(token_id)
        shown = {"logprob": max(FLOOR, logprob), "rank": rank, "decoded_token": text}
        return str(token_id), shown


def _as_token(score: TokenScore, num_top: int) -> Token:
    top = (TokenLogprob(token_id=id_, logprob=value) for id_, value in score.top[:num_top])
    return Token(index=0, token_id=score.token_id, text="", logprob=score.logprob, top=tuple(top))


def _finite(logprob: float | None) -> float:
    return FLOOR if logprob is None else max(FLOOR, logprob)
