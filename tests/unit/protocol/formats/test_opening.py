"""Where outputs begin, and from where on a grammar holds them."""

import pytest
from support.outputs import read_tokens
from support.published_outputs import FAMILIES, TOOLS

from protocol.formats.choose import choose_formats
from protocol.formats.contract import Tool, ToolError
from protocol.formats.formats import Output
from protocol.messages import Grammar
from protocol.text.grammar import GrammarTokenizer, Matcher
from protocol.text.tokenizer import Tokenizer

ANSWER = 'start: "yes" | "no"'
ASSISTANT = "<|im_start|>assistant\n"


def _opened(name: str, prompt: str, **wish: object) -> tuple[Tokenizer, Output]:
    tokenizer = FAMILIES[name].tokenizer()
    ids = tokenizer.encode(prompt)
    return tokenizer, choose_formats(tokenizer).open(prompt_ids=ids, **wish)  # type: ignore[arg-type]


def _allows(tokenizer: Tokenizer, grammar: Grammar | None, text: str) -> bool:
    assert grammar is not None
    matcher = Matcher.compile(grammar.text, GrammarTokenizer(tokenizer))
    ids = [*tokenizer.encode(text), tokenizer.eos_token_ids[0]]
    return all(matcher.accept(token_id) for token_id in ids)


def test_thoughts_that_the_prompt_opened_come_before_the_grammar() -> None:
    tokenizer, output = _opened("hermes+think", ASSISTANT + "<think>\n", answer_grammar=ANSWER)
    assert output.grammar is not None
    assert output.grammar.begins_after == ((tokenizer.added_tokens["</think>"],),)
    assert _allows(tokenizer, output.grammar, "\n\nyes")
    assert not _allows(tokenizer, output.grammar, "maybe")


def test_thoughts_that_the_prompt_closed_do_not() -> None:
    prompt = ASSISTANT + "<think>\n\n</think>\n\n"
    tokenizer, output = _opened("hermes+think", prompt, answer_grammar=ANSWER)
    assert output.grammar is not None and output.grammar.begins_after == ()
    assert _allows(tokenizer, output.grammar, "yes")
    assert not _allows(tokenizer, output.grammar, "<think>a</think>yes")


def test_thoughts_that_the_model_may_open_are_part_of_the_grammar() -> None:
    tokenizer, output = _opened("hermes+think", ASSISTANT, answer_grammar=ANSWER)
    for text in ("yes", "<think>\nWell.\n</think>\n\nno", "<think></think>no"):
        assert _allows(tokenizer, output.grammar, text)
    assert not _allows(tokenizer, output.grammar, "<think>yes")


def test_a_closing_tag_that_is_text_is_known_however_it_runs_into_line_breaks() -> None:
    _, output = _opened("hermes as text", ASSISTANT + "<think>\n", answer_grammar=ANSWER)
    assert output.grammar is not None
    assert len(output.grammar.begins_after) == 6


def test_a_turn_of_the_user_opens_nothing() -> None:
    prompt = f"<|im_start|>user\nWhat is <think>?<|im_end|>\n{ASSISTANT}"
    tokenizer, output = _opened("hermes+think", prompt)
    assert read_tokens(tokenizer, output, "A tag.").content == "A tag."


def test_an_answer_that_is_continued_in_thought_goes_on_there() -> None:
    prompt = ASSISTANT + "<think>\nThe answer"
    tokenizer, output = _opened("hermes+think", prompt)
    said = read_tokens(tokenizer, output, " is 4.</think>4")
    assert (said.reasoning, said.content) == (" is 4.", "4")


def test_a_message_of_gpt_oss_that_is_continued_goes_on_in_its_channel() -> None:
    prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>He"
    tokenizer, output = _opened("harmony", prompt)
    assert read_tokens(tokenizer, output, "llo<|return|>").content == "llo"


def test_the_answer_of_gpt_oss_is_held_in_its_final_channel_alone() -> None:
    tokenizer, output = _opened("harmony", "<|start|>assistant", answer_grammar=ANSWER)
    analysis = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    assert _allows(tokenizer, output.grammar, f"{analysis}<|channel|>final<|message|>yes")
    assert not _allows(tokenizer, output.grammar, "<|channel|>final<|message|>maybe")


def test_an_answer_may_be_a_call_instead() -> None:
    tokenizer, output = _opened("hermes", ASSISTANT, answer_grammar=ANSWER, tools=TOOLS)
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    assert _allows(tokenizer, output.grammar, "yes")
    assert _allows(tokenizer, output.grammar, call)
    assert not _allows(tokenizer, output.grammar, "Hello")


def test_what_is_asked_of_nobody_has_no_grammar() -> None:
    _, output = _opened("hermes", ASSISTANT, tools=TOOLS)
    assert output.grammar is None and output.new_parser is not None


def test_no_tools_means_that_calls_are_text() -> None:
    tokenizer, output = _opened("hermes+think", ASSISTANT, tools=TOOLS, choice="none")
    said = read_tokens(tokenizer, output, '<tool_call>{"name": "get_time"}</tool_call>')
    assert said.content == '<tool_call>{"name": "get_time"}</tool_call>' and not said.calls


def test_a_call_of_gpt_oss_without_tools_is_content() -> None:
    tokenizer, output = _opened("harmony", "<|start|>assistant")
    text = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    assert read_tokens(tokenizer, output, text).content == "{}"


def test_a_strict_tool_that_cannot_be_held_is_refused_by_name() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}}
    tools = (Tool(name="f", parameters=schema, strict=True),)
    with pytest.raises(ToolError, match=r"f: properties\.a: pattern of a string"):
        _opened("qwen3_coder", ASSISTANT, tools=tools)
    unique = {"type": "array", "uniqueItems": True}
    tools = (Tool(name="f", parameters=unique, strict=True),)
    with pytest.raises(ToolError, match=r"f: uniqueItems"):
        _opened("hermes", ASSISTANT, tools=tools)


def test_required_arguments_of_such_a_tool_that_is_not_strict_are_any_object() -> None:
    schema = {"type": "object", "properties": {"a": {"not": {}}}}
    tools = (Tool(name="f", parameters=schema),)
    tokenizer, output = _opened("hermes", ASSISTANT, tools=tools, choice="required")
    call = '<tool_call>\n{"name": "f", "arguments": {"b": 1}}\n</tool_call>'
    assert _allows(tokenizer, output.grammar, call)


def test_ids_are_of_one_output_and_of_their_family() -> None:
    one, other = _ids(), _ids()
    assert len({*one, *other}) == 4 and all(len(each) == len("call_") + 24 for each in one)


def _ids() -> list[str]:
    tokenizer, output = _opened("hermes", ASSISTANT, tools=TOOLS)
    call = '<tool_call>\n{"name": "get_time"}\n</tool_call>'
    return [call.id for call in read_tokens(tokenizer, output, call + call).calls]


def test_ids_that_a_model_writes_are_kept_and_mistral_s_are_nine_letters() -> None:
    tokenizer, output = _opened("kimi", "<|im_middle|>", tools=TOOLS)
    text = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:3"
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"
    )
    assert [(c.id, c.name) for c in read_tokens(tokenizer, output, text).calls] == [
        ("functions.get_time:3", "get_time")
    ]
    tokenizer, output = _opened("mistral", "[/INST]", tools=TOOLS)
    [call] = read_tokens(tokenizer, output, "[TOOL_CALLS]get_time[ARGS]{}").calls
    assert len(call.id) == 9 and call.id.isalnum()
