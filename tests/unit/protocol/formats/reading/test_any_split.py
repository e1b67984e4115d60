"""However an output is cut into pieces, and whatever is wrong with it."""

import random
import re

import pytest
from support.outputs import Said, joined, say, steps
from support.published_outputs import FAMILIES, PUBLISHED, TOOLS, Published

from protocol.formats.formats import Formats, Output
from protocol.text.tokenizer import Tokenizer

SPOILT = pytest.mark.parametrize("num_spoilt", [12, pytest.param(70, marks=pytest.mark.long)])


def _opened(case: Published) -> tuple[Tokenizer, Formats, Output]:
    family = FAMILIES[case.family]
    tokenizer = family.tokenizer()
    formats = family.formats(tokenizer)
    prompt = tokenizer.encode(family.generation_prompt + case.prompt_ends)
    tools = TOOLS if formats.tools else ()
    return tokenizer, formats, formats.open(tools=tools, prompt_ids=prompt)


def _spoilt(text: str, rng: random.Random) -> str:
    """Something is missing, twice there, or in the wrong place."""
    start, end = sorted(rng.sample(range(len(text) + 1), 2))
    at = rng.randrange(len(text))
    spoilt = (text[:start] + text[end:], text[:end], text[:end] + text[start:])
    return rng.choice((*spoilt, text[:at] + text[start:end] + text[at:]))


def _cut(fed: list[tuple[int, str]], rng: random.Random) -> list[tuple[int, str]]:
    out = []
    for token_id, text in fed:
        cuts = sorted(rng.sample(range(len(text) + 1), min(3, len(text) + 1)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        out += [*((-1, piece) for piece in pieces[:-1]), (token_id, pieces[-1])]
    return out


def _facts(said: Said) -> tuple[object, ...]:
    return said.content, said.reasoning, said.named


@SPOILT
@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case.family}: {case.text[:20]}")
def test_pieces_say_what_the_whole_says(case: Published, num_spoilt: int) -> None:
    tokenizer, _, output = _opened(case)
    assert output.new_parser is not None
    rng = random.Random(case.text)
    for text in (case.text, *(_spoilt(case.text, rng) for _ in range(num_spoilt))):
        tokens = steps(tokenizer, output.marks, text)
        whole = joined(tokens, output.marks)
        said = say(output.new_parser(), whole)
        assert _facts(say(output.new_parser(), tokens)) == _facts(said), text
        assert _facts(say(output.new_parser(), _cut(whole, rng))) == _facts(said), text


ALL_TEXT = [case for case in PUBLISHED if case.family not in ("harmony", "kimi_k3")]
"""The others have headers and attributes, which are no text."""


@SPOILT
@pytest.mark.parametrize("case", ALL_TEXT, ids=lambda case: f"{case.family}: {case.text[:20]}")
def test_without_a_call_no_text_is_lost(case: Published, num_spoilt: int) -> None:
    tokenizer, formats, output = _opened(case)
    assert output.new_parser is not None
    tags = [*(formats.tools.terminals() if formats.tools else ())]
    tags += [tag for tag in tokenizer.added_tokens if len(tag) > 2]
    if formats.thinking is not None:
        tags += [formats.thinking.open, formats.thinking.close]
    names = "|".join(map(re.escape, sorted(tags, key=len, reverse=True)))
    rng = random.Random(case.text)
    for text in (_spoilt(case.text, rng) for _ in range(num_spoilt)):
        said = say(output.new_parser(), steps(tokenizer, output.marks, text))
        if not said.calls:
            shown = said.reasoning + said.content
            left, right = (re.sub(names, "", one) for one in (shown, text))
            assert sorted("".join(left.split())) == sorted("".join(right.split())), text


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: f"{case.family}: {case.text[:20]}")
def test_wherever_an_output_is_cut_what_was_told_begins_the_whole(case: Published) -> None:
    tokenizer, _, output = _opened(case)
    assert output.new_parser is not None
    tokens = steps(tokenizer, output.marks, case.text)
    whole = say(output.new_parser(), tokens)
    for end in range(len(tokens)):
        said = say(output.new_parser(), tokens[:end], is_cut=True)
        assert whole.content.startswith(said.content)
        assert whole.reasoning.startswith(said.reasoning)
        for call, same in zip(said.calls, whole.calls[: len(said.calls)], strict=True):
            assert call.name == same.name and same.arguments.startswith(call.arguments)
