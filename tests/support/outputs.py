"""Outputs of a model as parsers see them: a tokeniser with a format's tokens, text in pieces, and
what events say together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from protocol.formats.contract import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    OutputEvent,
    OutputParser,
    Reasoning,
    Tool,
)
from protocol.formats.formats import Output
from protocol.text.detokenize import Detokenizer
from protocol.text.template.chat_template import ChatTemplate
from protocol.text.tokenizer import Tokenizer


def tokenizer_with(
    *,
    special: Sequence[str] = (),
    added: Sequence[str] = (),
    template: str = "",
    response_template: object = None,
) -> Tokenizer:
    """A token per byte, and these: `special` ones are not shown, `added` ones are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate(alphabet)}
    raw = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    names = ("<eos>", *special)
    raw.add_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    raw.add_tokens([tokenizers.AddedToken(name, special=False, normalized=False) for name in added])
    return Tokenizer(
        raw,
        chat_template=ChatTemplate(template, special_tokens={}) if template else None,
        eos_token_ids=(len(alphabet),),
        vocab_size=raw.get_vocab_size(),
        max_context_tokens=1 << 16,
        response_template=response_template,
    )


@dataclass
class Call:
    id: str
    name: str
    arguments: str = ""
    is_whole: bool = False


@dataclass
class Said:
    """Events together. `calls` without their ids compare equal."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def take(self, events: Iterable[OutputEvent]) -> None:
        for event in events:
            match event:
                case Content():
                    self.content += event.text
                case Reasoning():
                    self.reasoning += event.text
                case CallStart():
                    assert event.index == len(self.calls), "calls are numbered in order"
                    self.calls.append(Call(event.id, event.name))
                case CallArguments():
                    assert event.index == len(self.calls) - 1 and not self.calls[-1].is_whole
                    self.calls[-1].arguments += event.text
                case CallEnd():
                    assert not self.calls[event.index].is_whole
                    self.calls[event.index].is_whole = True

    @property
    def named(self) -> list[tuple[str, str, bool]]:
        return [(call.name, call.arguments, call.is_whole) for call in self.calls]


def read_tokens(tokenizer: Tokenizer, output: Output, text: str) -> Said:
    """What a parser makes of the tokens of a text, cut at marks as workers do."""
    assert output.new_parser is not None
    return say(output.new_parser(), steps(tokenizer, output.marks, text))


def say(parser: OutputParser, fed: Iterable[tuple[int, str]], *, is_cut: bool = False) -> Said:
    said = Said()
    for token_id, text in fed:
        said.take(parser.feed(token_id, text))
    said.take(parser.finish(is_cut=is_cut))
    return said


def steps(tokenizer: Tokenizer, marks: Sequence[int], text: str) -> list[tuple[int, str]]:
    """Tokens, and the text that comes with each."""
    detokenizer = Detokenizer(tokenizer.token_bytes, skip_special_tokens=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [(one, "" if one in marks else detokenizer.feed(one)) for one in ids]


def joined(fed: Iterable[tuple[int, str]], marks: Sequence[int]) -> list[tuple[int, str]]:
    """The same in the largest pieces: all text before a mark comes with it."""
    out: list[tuple[int, str]] = []
    held = ""
    for token_id, text in fed:
        held += text
        if token_id in marks:
            out.append((token_id, held))
            held = ""
    return [*out, (-1, held)]


def weather(**extra: object) -> Tool:
    """A tool with parameters of several types."""
    properties = {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "metric": {"type": "boolean"},
        "spots": {"type": "array", "items": {"type": "string"}},
    }
    schema = {"type": "object", "properties": properties, **extra}
    return Tool(name="get_weather", parameters=schema)
