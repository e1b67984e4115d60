"""Text is shown as soon as it cannot be part of a call."""

from support.outputs import Said
from support.published_outputs import FAMILIES, TOOLS

from protocol.formats.choose import choose_formats
from protocol.formats.contract import OutputParser


def _parser(name: str) -> OutputParser:
    family = FAMILIES[name]
    tokenizer = family.tokenizer()
    prompt = tokenizer.encode(family.generation_prompt)
    output = choose_formats(tokenizer).open(tools=TOOLS, prompt_ids=prompt)
    assert output.new_parser is not None
    return output.new_parser()


def _shown(parser: OutputParser, *pieces: str) -> list[str]:
    """Of content, after each piece."""
    said, shown = Said(), []
    for piece in pieces:
        said.take(parser.feed(-1, piece))
        shown.append(said.content)
    return shown


def test_only_what_may_become_a_terminal_waits() -> None:
    shown = _shown(_parser("hermes as text"), "a < b", " <", "t", "ool", "s> c")
    assert shown == ["a < b"] * 4 + ["a < b <tools> c"]


def test_space_waits_for_what_comes_after_it() -> None:
    assert _shown(_parser("hermes"), "a", "\n\n", "b") == ["a", "a", "a\n\nb"]


def test_an_object_is_shown_once_it_is_not_a_call() -> None:
    shown = _shown(_parser("llama3_json"), "{", '"na', 'me"', ': "Ann"', ', "age": 3}')
    assert shown == ["", "", "", '{"name": "Ann"', '{"name": "Ann", "age": 3}']
    assert _shown(_parser("llama3_json"), '{"city"', ":")[0] == '{"city"'


def test_a_list_is_shown_once_it_is_not_a_call() -> None:
    assert _shown(_parser("pythonic"), "[", "1", ", 2]") == ["", "[1", "[1, 2]"]


def test_arguments_come_piece_by_piece() -> None:
    parser, said, lengths = _parser("hermes as text"), Said(), []
    for piece in ('<tool_call>{"name": "get_weather", "arguments": {"city"', ': "Par', "is"):
        said.take(parser.feed(-1, piece))
        lengths.append(said.calls[0].arguments)
    assert lengths == ['{"city"', '{"city": "Par', '{"city": "Paris']


def test_strings_between_tags_come_piece_by_piece() -> None:
    parser, said, got = _parser("qwen3_coder"), Said(), []
    for piece in ("<function=get_weather>\n<parameter=city>\nPar", "is\n", "<", "b>", "\n</par"):
        said.take(parser.feed(-1, piece))
        got.append(said.calls[0].arguments)
    start = '{"city": "Par'
    assert got == [start, f"{start}is", f"{start}is", f"{start}is\\n<b>", f"{start}is\\n<b>"]


def test_a_call_that_was_cut_has_begun_and_not_ended() -> None:
    parser, said = _parser("hermes as text"), Said()
    said.take(parser.feed(-1, '<tool_call>{"name": "get_weather", "arguments": {"city": "P'))
    said.take(parser.finish())
    assert said.named == [("get_weather", '{"city": "P', False)] and not said.content


def test_an_output_that_ends_before_a_name_is_content() -> None:
    parser, said = _parser("hermes as text"), Said()
    said.take(parser.feed(-1, 'Hi <tool_call>{"name": "get_we'))
    said.take(parser.finish())
    assert said.content == 'Hi <tool_call>{"name": "get_we' and not said.calls
