import pytest
from support.outputs import tokenizer_with, weather
from support.published_outputs import FAMILIES

from protocol.errors import SettingsError
from protocol.formats.choose import choose_formats


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_known_by_its_template(name: str) -> None:
    family = FAMILIES[name]
    formats = choose_formats(family.tokenizer())
    assert formats.tool_format == name.split("+")[0].split(" ")[0]


def test_think_tags_are_known_by_the_template_or_by_being_tokens() -> None:
    assert choose_formats(tokenizer_with(template="{# </think> #}")).reasoning_format == "think"
    tokens = tokenizer_with(special=("[THINK]", "[/THINK]"), template="{# a #}")
    assert choose_formats(tokens).reasoning_format == "magistral"


def test_a_model_that_says_nothing_of_formats_has_none() -> None:
    formats = choose_formats(tokenizer_with(template="{{ messages }}"))
    assert (formats.tool_format, formats.reasoning_format) == ("none", "none")
    output = formats.open(prompt_ids=[1])
    assert (output.marks, output.new_parser, output.grammar) == ((), None, None)


def test_tools_of_a_model_without_a_format_are_refused() -> None:
    with pytest.raises(ValueError, match="not known"):
        choose_formats(tokenizer_with()).open(tools=[weather()], prompt_ids=[1])


def test_settings_say_otherwise() -> None:
    tokenizer = FAMILIES["hermes+think"].tokenizer()
    formats = choose_formats(tokenizer, tools="qwen3_coder", reasoning="none")
    assert (formats.tool_format, formats.reasoning_format) == ("qwen3_coder", "none")
    assert choose_formats(tokenizer, tools="none").tool_format == "none"


@pytest.mark.parametrize("setting", ["tools", "reasoning"])
def test_an_unknown_name_is_refused_with_those_there_are(setting: str) -> None:
    with pytest.raises(SettingsError, match=r"'qwen9' is none of auto, none, .*"):
        choose_formats(tokenizer_with(), **{setting: "qwen9"})
