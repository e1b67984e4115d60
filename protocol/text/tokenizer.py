"""Text and tokens of one checkpoint: encode, decode, chat prompts, a request's text as it grows.

The router encodes and renders; the workers turn sampled tokens into text. Both load the same
directory, so they agree. Needs `tokenizers` and `jinja2` only; no model is loaded.
"""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers

from protocol.errors import CheckpointError
from protocol.messages import Sampling
from protocol.text.context import context_tokens
from protocol.text.detokenize import Detokenizer, TokenBytes
from protocol.text.json_fields import Fields, whole
from protocol.text.model_files import MAX_TOKENIZER_BYTES, check_readable, read_whole
from protocol.text.special_texts import SpecialTexts
from protocol.text.stop import StopMatcher
from protocol.text.template.chat_template import MAX_CHARS, ChatTemplate, load_chat_template
from protocol.text.template.files import special_tokens, token_text
from protocol.text.text_bounds import TextTooLong, longest_token
from protocol.text.text_config import (
    JsonFile,
    read_json_file,
    read_json_object_if_there,
    text_config,
)

log = logging.getLogger(__name__)
LOOKS = 4
"""First a beginning of a character per token of the context is encoded, then so many times more."""
TOO_MANY = 2
"""Contexts that the beginning of a text must fill to show that the whole does not fit in one: the
word where it is cut may be encoded otherwise."""
EXTRA_BEFORE_V5 = "additional_special_tokens"
LATE_END = re.compile(r'("Regex"\s*:\s*)"\\\\s\+\$"')
"""DeepSeek's pattern for spaces at the end takes quadratic time where they are not at the end: 3 s
for 16,000. From the first of them only, it finds the same."""


SpecialsInChats = Literal["text", "token"]
"""What special tokens are that are written in messages, tools or documents."""


class Tokenizer:
    """A checkpoint's tokeniser and chat template. Thread-safe."""

    def __init__(
        self,
        raw: tokenizers.Tokenizer,
        *,
        chat_template: ChatTemplate | None,
        eos_token_ids: tuple[int, ...],
        vocab_size: int,
        max_context_tokens: int,
        specials_in_chats: SpecialsInChats = "text",
        response_template: object = None,
    ) -> None:
        raw.no_truncation()
        raw.no_padding()
        self._raw = raw
        self.token_bytes = TokenBytes(raw)
        """`token_bytes(id)`: the exact bytes of a token, perhaps part of a character."""
        self.chat_template = chat_template
        self.response_template = response_template
        """As the checkpoint has it: how its outputs are read, if it says so."""
        self.eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size
        self.max_context_tokens = max_context_tokens
        added = raw.get_added_tokens_decoder().items()
        self.added_tokens: Mapping[str, int] = {token.content: number for number, token in added}
        """Beside the vocabulary that text is cut by, special or not."""
        self.added_token_ids = frozenset(self.added_tokens.values())
        self._specials_in_chats = specials_in_chats
        self._longest_token = longest_token(raw)
        self._knows_more = max(raw.get_vocab().values(), default=0) >= vocab_size

    @classmethod
    def load(
        cls,
        path: Path,
        config: JsonFile | None = None,
        *,
        max_model_len: int | None = None,
        specials_in_chats: SpecialsInChats = "text",
    ) -> "Tokenizer":
        """Read a Hugging Face directory, of which `config` may be given, its `config.json`.
        CheckpointError names the file that is at fault, SettingsError a `max_model_len` that is
        too long for the model."""
        config = config or read_json_file(path / "config.json")
        tokenizer_config = read_json_object_if_there(path / "tokenizer_config.json")
        raw = _read_tokenizer(path / "tokenizer.json")
        try:
            _add_tokens(raw, special_tokens(path, tokenizer_config), tokenizer_config)
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path / 'tokenizer_config.json'}: {error}") from error
        text = text_config(config.value)
        vocab_size = Fields(config.file, text).size("vocab_size")
        return cls(
            raw,
            chat_template=load_chat_template(path, tokenizer_config=tokenizer_config),
            eos_token_ids=_in_vocabulary(
                path, _eos_token_ids(path, raw, text, tokenizer_config), vocab_size
            ),
            vocab_size=vocab_size,
            max_context_tokens=context_tokens(config.file, text, max_model_len),
            specials_in_chats=specials_in_chats,
            response_template=tokenizer_config.get("response_template"),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Releases the interpreter lock while it works, unlike `tokenizers`' own `encode`. Raises
        TextTooLong, early, for a text that no context holds, and ValueError for tokens that the
        model does not have."""
        self._check_length(text)
        return self._checked(self._encoding(text, add_special_tokens).ids)

    def _check_length(self, text: str) -> None:
        size = self.max_context_tokens
        while size < len(text):
            if len(self._encoding(text[:size], False)) > TOO_MANY * self.max_context_tokens:
                raise TextTooLong(f"the text has more than {self.max_context_tokens} tokens")
            size *= LOOKS

    def _checked(self, ids: list[int]) -> list[int]:
        if self._knows_more and (most := max(ids, default=0)) >= self.vocab_size:
            token = self._raw.id_to_token(most)
            rule = f"the model's are 0 to {self.vocab_size - 1}"
            raise ValueError(f"the text has {token!r}, which is token {most}; {rule}")
        return ids

    def _encoding(self, text: str, add_special_tokens: bool) -> tokenizers.Encoding:
        try:
            return self._raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except TypeError as error:
            raise ValueError("the text has half of a surrogate pair, which is no UTF-8") from error

    def max_chars(self, context: int) -> int:
        """No text with more characters fits into `context` tokens."""
        return sys.maxsize if self._longest_token is None else context * self._longest_token

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Releases the interpreter lock, as `encode` does."""
        texts = self._raw.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)
        return texts[0]

    def token_text(self, token_id: int) -> str:
        """The token alone; U+FFFD where it is part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether it has no text of its own, unless asked for."""
        return self.token_bytes.is_special(token_id)

    @cached_property
    def _special_texts(self) -> SpecialTexts | None:
        """None where it makes no difference, or none is to be made."""
        kept = self._specials_in_chats == "token" or self._raw.encode_special_tokens
        return None if kept else SpecialTexts(self._raw)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **variables: Any) -> str:
        """The prompt text. ValueError when there is no template or it refuses the messages."""
        if self.chat_template is None:
            raise ValueError("messages: this model has no chat template; use /v1/completions")
        return self.chat_template.render(messages, **variables)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], /, **variables: Any) -> list[int]:
        """The template writes the special tokens itself, so none are added. Raises as `render_chat`
        and `encode` do."""
        max_chars = min(MAX_CHARS, self.max_chars(self.max_context_tokens))
        given = {name: variables.get(name) for name in ("tools", "documents")}
        special, mark = self._special_texts, None
        if special is not None:
            mark = special.mark_for(messages, given)
        if special is None or mark is None:
            text = self.render_chat(messages, max_chars=max_chars, **variables)
            return self.encode(text, add_special_tokens=False)
        searched = self.chat_template.searched if self.chat_template else ()
        marked = [
            special.marked(one, mark, but=searched if one["role"] == "assistant" else ())
            for one in messages
        ]
        variables |= special.marked(given, mark)
        text = self.render_chat(marked, max_chars=max_chars, **variables)
        self._check_length(text)
        return self._checked(special.encode(text, mark))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextStep:
    text: str
    """May be shown now. May lag behind: the rest comes with later tokens or with `flush`."""
    stopped: bool
    """A stop string or stop token was reached: the request is finished with reason `stop`."""


class TextState:
    """The text of one request: a function of its sampled tokens alone.

    Feed every sampled token once, in order, from index 0; after a hand-over or a lost worker
    feed the earlier ones again and drop what they return. Not thread-safe.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling) -> None:
        self._detokenizer = Detokenizer(
            tokenizer.token_bytes, skip_special_tokens=sampling.skip_special_tokens
        )
        self._matcher = StopMatcher(sampling.stop, include_stop=sampling.include_stop)
        self._ending_ids = sampling.ending_ids(tokenizer.eos_token_ids)
        self._marks = frozenset(sampling.marks)
        self._sampling = sampling
        self._eos_token_ids = tokenizer.eos_token_ids
        self._num_tokens = 0
        self.stopped_by: int | str | None = None
        """As of `protocol.messages.Finished`."""

    def feed(self, token_id: int) -> TextStep:
        """Nothing stops a request within `min_tokens` tokens; their text is not searched. With a
        mark comes all the text before it; its own is never shown."""
        sampling = self._sampling
        self._num_tokens += 1
        ends = sampling.reason_to_end(token_id, self._num_tokens, self._ending_ids) == "stop"
        if ends and (sampling.ignore_eos or token_id not in self._eos_token_ids):
            self.stopped_by = token_id
        if token_id in self._marks:
            return self._step(self.flush(), ends=ends)
        if ends:
            text = self._detokenizer.feed(token_id) if sampling.include_stop else ""
            return self._step(self._matcher.feed(text), ends=True)
        text = self._detokenizer.feed(token_id)
        if not sampling.may_end(self._num_tokens - 1):
            return TextStep(text=text, stopped=False)
        return self._step(self._matcher.feed(text), ends=False)

    def _step(self, text: str, *, ends: bool) -> TextStep:
        found = self._matcher.matched
        if found is not None:
            self.stopped_by = found
        return TextStep(text=text, stopped=ends or found is not None)

    def flush(self) -> str:
        """The text still held back, once the request has ended. Nothing after a stop string."""
        if self._matcher.matched is not None:
            return ""
        return self._matcher.feed(self._detokenizer.flush()) + self._matcher.flush()


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    raw = read_whole(path, max_bytes=MAX_TOKENIZER_BYTES)
    try:
        text = raw.decode()
        return tokenizers.Tokenizer.from_str(LATE_END.sub(r'\1"(?<!\\\\s)\\\\s+$"', text))
    except Exception as error:  # tokenizers raises nothing narrower
        check_readable(path)
        raise CheckpointError(f"{path}: {error}") from error


def _add_tokens(
    raw: tokenizers.Tokenizer, special: Mapping[str, str], tokenizer_config: Mapping[str, Any]
) -> None:
    """Those that tokenizer_config.json has and tokenizer.json has not, or otherwise. As in
    transformers: by their numbers, then the special ones."""
    raw.encode_special_tokens = bool(tokenizer_config.get("split_special_tokens"))
    added = raw.get_added_tokens_decoder().values()
    same, known = set(map(repr, added)), {token.content for token in added}
    listed = sorted((tokenizer_config.get("added_tokens_decoder") or {}).items(), key=_number)
    new = [token for _, given in listed if repr(token := _added_token(given)) not in same]
    extra = [tokenizer_config.get(key) for key in ("extra_special_tokens", EXTRA_BEFORE_V5)]
    names = [*special.values(), *(next((given for given in extra if isinstance(given, list)), ()))]
    new += [token for given in names if (token := _added_token(given)).content not in known]
    raw.add_tokens(list({token.content: token for token in reversed(new)}.values())[::-1])


def _number(entry: tuple[str, object]) -> int:
    return int(entry[0])


def _added_token(given: object) -> tokenizers.AddedToken:
    """Special, unless it says that it is not. Raises ValueError or TypeError for no token."""
    options: dict[str, Any] = {"content": given, "special": True}
    options = dict(given) if isinstance(given, dict) else options
    options.pop("__type", None)
    return tokenizers.AddedToken(**options)


def _eos_token_ids(
    path: Path,
    raw: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    tokenizer_config: Mapping[str, Any],
) -> set[int]:
    """Every id that ends a text, by any of the three files that may name one."""
    generation = path / "generation_config.json"
    found = _token_ids(generation, read_json_object_if_there(generation).get("eos_token_id"))
    found |= _token_ids(path / "config.json", config.get("eos_token_id"))
    file = path / "tokenizer_config.json"
    token = token_text(file, "eos_token", tokenizer_config.get("eos_token"))
    token_id = raw.token_to_id(token) if token else None
    return found | ({token_id} if token_id is not None else set())


def _in_vocabulary(path: Path, ids: set[int], vocab_size: int) -> tuple[int, ...]:
    """Others are published too, -1 for none among them: the model never gives one."""
    outside = sorted(token_id for token_id in ids if not 0 <= token_id < vocab_size)
    if outside:
        extra = {"eos_token_id": outside, "vocab_size": vocab_size, "path": str(path)}
        log.info("ends of text outside the vocabulary ignored", extra=extra)
    return tuple(sorted(ids - set(outside)))


def _token_ids(file: Path, given: object) -> set[int]:
    """One id, a list of them, or none."""
    ids: list[Any] = given if isinstance(given, list) else [] if given is None else [given]
    ids = [whole(token_id) for token_id in ids]
    if {*map(type, ids)} - {int}:
        raise CheckpointError(f"{file}: eos_token_id is {given!r}, not a token's number")
    return set(ids)
