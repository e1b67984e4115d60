"""What a parser reads becomes content blocks, one after another."""

from collections.abc import Iterable
from typing import Any

import pytest

from protocol.formats.contract import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    OutputEvent,
    Reasoning,
)
from router.anthropic.blocks import BlockBegun, BlockEnded, BlockGrown, OutputBlocks


def grown(
    *events: OutputEvent, shows_thinking: bool = True
) -> tuple[list[str], list[dict[str, Any]]]:
    """What changed, in words, and the blocks at the end."""
    blocks = OutputBlocks(shows_thinking=shows_thinking)
    words = []
    for change in [*(c for event in events for c in blocks.add(event)), *blocks.end()]:
        match change:
            case BlockBegun(block):
                words.append(f"+{block.index} {block.kind}")
            case BlockGrown(block, text):
                words.append(f"{block.index} {text!r}")
            case BlockEnded(block):
                words.append(f"-{block.index}")
    shapes = [block.shape() for block in blocks.blocks]
    for shape in shapes:
        assert shape.pop("signature", "x")
    return words, shapes


def call(index: int, *pieces: str, ended: bool = True) -> Iterable[OutputEvent]:
    yield CallStart(index=index, id=f"call_{index}", name="f")
    yield from (CallArguments(index=index, text=piece) for piece in pieces)
    if ended:
        yield CallEnd(index=index)


def test_thoughts_text_and_calls_are_blocks_that_never_overlap() -> None:
    words, shapes = grown(
        Reasoning("hm"), Reasoning("m"), Content("\n\n"), Content("I look."),
        *call(0, '{"a"', ": 1}"), Content("\n"), *call(1, "{}"),
    )  # fmt: skip
    assert words == [
        "+0 thinking", "0 'hm'", "0 'm'", "-0",
        "+1 text", "1 '\\n\\nI look.'", "-1",
        "+2 tool_use", "2 '{\"a\"'", "2 ': 1}'", "-2",
        "+3 tool_use", "3 '{}'", "-3",
    ]  # fmt: skip
    assert shapes == [
        {"type": "thinking", "thinking": "hmm"},
        {"type": "text", "text": "\n\nI look."},
        {"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {}},
    ]


def test_white_space_alone_is_no_text() -> None:
    assert grown(Content(" "), Content("\n")) == ([], [])


def test_thoughts_that_are_not_shown_are_still_a_block() -> None:
    words, shapes = grown(Reasoning("hm"), Content("a"), shows_thinking=False)
    assert words == ["+0 thinking", "-0", "+1 text", "1 'a'", "-1"]
    assert shapes[0] == {"type": "thinking", "thinking": ""}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("", {}),
        ('{"city": "Rome", "at": "no', {"city": "Rome"}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ('{"a": 1, "b', {"a": 1}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ('{"a": x}', {"INVALID_JSON": '{"a": x}'}),
    ],
)
def test_of_arguments_that_were_cut_what_is_there_is_given(
    arguments: str, shown: dict[str, Any]
) -> None:
    assert grown(*call(0, arguments, ended=False))[1][0]["input"] == shown
