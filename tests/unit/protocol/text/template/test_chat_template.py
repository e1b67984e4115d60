import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import CHATML, byte_fallback_tokenizer, write_checkpoint
from transformers import PreTrainedTokenizerFast

from protocol.errors import CheckpointError
from protocol.text.template.chat_template import ChatTemplate
from protocol.text.tokenizer import Tokenizer

LLAMA_3 = (
    "{{- bos_token }}\n"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system_message + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
    "{%- endif %}\n"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}\n"
    "    {%- set system_message = messages[0]['content'] %}\n"
    "    {%- set loop_messages = messages[1:] %}\n"
    "{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n"
    "{{- bos_token }}\n"
    "{%- for message in loop_messages %}\n"
    "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
    "        {{- raise_exception('roles must alternate user/assistant') }}\n"
    "    {%- endif %}\n"
    "    {%- if message['role'] == 'user' %}\n"
    "        {%- if loop.first and system_message is defined %}\n"
    "            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n"
    "        {%- else %}\n            {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n"
    "        {%- endif %}\n"
    "    {%- else %}\n        {{- ' ' + message['content'] + eos_token}}\n    {%- endif %}\n"
    "{%- endfor %}\n"
)
EXTENSIONS = (
    "{%- set ns = namespace(count=0) -%}\n"
    "{% for message in messages %}\n"
    "    {% if message.role == 'system' %}{% continue %}{% endif %}\n"
    "    {% set ns.count = ns.count + 1 %}\n"
    "    {% generation %}{{ message | tojson }}{% endgeneration %}\n"
    "    {% if ns.count == 2 %}{% break %}{% endif %}\n"
    "{% endfor %}\n"
    "{{ tools is none }} {{ strftime_now('%Y') | length }} {{ {'<b>': [1]} | tojson(indent=2) }}"
)
QWEN_3 = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string \
and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = \
content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') \
+ '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA_3,
    "mistral": MISTRAL,
    "qwen3": QWEN_3,
    "extensions": EXTENSIONS,
}
CHAT = [
    {"role": "system", "content": " Be <brief> & kind. "},
    {"role": "user", "content": "Hi 🙂\n"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "What is 'it'?"},
]


def load(path: Path, **config: Any) -> Tokenizer:
    return Tokenizer.load(write_checkpoint(path, bos_token="<|endoftext|>", **config))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[1:3]])
def test_templates_render_as_in_transformers(
    tmp_path: Path, name: str, messages: Sequence[dict[str, str]]
) -> None:
    ours = load(tmp_path, chat_template=TEMPLATES[name])
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours.render_chat(messages) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(messages) == ids


@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
@pytest.mark.parametrize("generate", [True, False])
def test_template_variables_do_what_they_do_in_transformers(
    tmp_path: Path, variables: dict[str, bool], generate: bool
) -> None:
    ours = load(tmp_path, chat_template=QWEN_3)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
    for messages in ([*CHAT, thought], [*CHAT, thought, CHAT[1]]):
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=generate, tokenize=False, **variables
        )
        rendered = ours.render_chat(messages, add_generation_prompt=generate, **variables)
        assert rendered == expected


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("text", ["Hello, world", " two  spaces ", "東京 🙂", "<|im_end|>x", ""])
def test_encode_and_decode_equal_transformers(
    tmp_path: Path, byte_fallback: bool, text: str
) -> None:
    raw = byte_fallback_tokenizer() if byte_fallback else None
    eos = "</s>" if byte_fallback else "<|im_end|>"
    ours = Tokenizer.load(write_checkpoint(tmp_path, raw=raw, eos_token=eos))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_a_jinja_file_comes_before_the_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    assert Tokenizer.load(tmp_path).render_chat(CHAT[1:]) == "Hi 🙂\n<|im_end|>"


NAMED = {"default": "plain {{ messages|length }}", "tool_use": "tools {{ tools|length }}"}
FILES: dict[str, dict[str, str]] = {
    "a list in the config": {
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": key, "template": of} for key, of in NAMED.items()]}
        )
    },
    "an object in the config": {"tokenizer_config.json": json.dumps({"chat_template": NAMED})},
    "a file and a folder": {
        "chat_template.jinja": NAMED["default"],
        "additional_chat_templates/tool_use.jinja": NAMED["tool_use"],
        "additional_chat_templates/rag.jinja": "unused",
        "tokenizer_config.json": json.dumps({"chat_template": "overruled"}),
    },
    "one file for all": {"chat_template.jinja": "all {{ tools is none }}"},
}


@pytest.mark.parametrize("name", FILES)
def test_templates_are_found_and_chosen_as_in_transformers(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, chat_template=None)
    for file, text in FILES[name].items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for tools in (None, [], [{"type": "function", "function": {"name": "f"}}]):
        expected = theirs.apply_chat_template(CHAT, tools=tools, tokenize=False)
        assert ours.render_chat(CHAT, tools=tools, add_generation_prompt=False) == expected


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_a_processors_template_is_read_where_there_is_no_other(tmp_path: Path, file: str) -> None:
    write_checkpoint(tmp_path, chat_template=None)
    (tmp_path / file).write_text(json.dumps({"chat_template": "of a processor"}))
    assert Tokenizer.load(tmp_path).render_chat(CHAT) == "of a processor"


def test_the_mark_of_utf8_is_no_part_of_a_template(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, chat_template=None)
    (tmp_path / "chat_template.jinja").write_text("hello", encoding="utf-8-sig")
    assert Tokenizer.load(tmp_path).render_chat(CHAT) == "hello"


def test_an_empty_template_is_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, chat_template=None)
    (tmp_path / "chat_template.jinja").write_text("")
    assert Tokenizer.load(tmp_path).chat_template is None


BROKEN = "one\n{% if %}"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", BROKEN),
        ("additional_chat_templates/tool_use.jinja", BROKEN),
        ("processor_config.json", json.dumps({"chat_template": BROKEN})),
        ("tokenizer_config.json", json.dumps({"chat_template": BROKEN})),
    ],
)
def test_a_template_that_is_none_is_named_by_its_file(
    tmp_path: Path, file: str, content: str
) -> None:
    write_checkpoint(tmp_path, chat_template=None)
    if "/" in file:
        (tmp_path / "chat_template.jinja").write_text("fine")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=f"{file}: chat template, line 2: "):
        Tokenizer.load(tmp_path)


TOKENS: dict[str, dict[str, Any]] = {
    "all of the usual names": {
        f"{name}_token": f"<{name}>" for name in ("unk", "sep", "pad", "cls", "mask")
    },
    "a name of its own": {"image_token": "<img>", "tool_call_token": "<call>"},
    "an object of names": {"extra_special_tokens": {"audio_token": "<aud>", "eoa_token": "</aud>"}},
    "a list without names": {"extra_special_tokens": ["<x>"], "boi_token": "<boi>"},
    "with options": {"pad_token": {"__type": "AddedToken", "content": "<p>", "lstrip": True}},
    "nulls": {"pad_token": None, "image_token": None},
}
NAMES = (
    *(
        "bos",
        "eos",
        "unk",
        "sep",
        "pad",
        "cls",
        "mask",
        "image",
        "tool_call",
        "audio",
        "eoa",
        "boi",
    ),
)


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("legacy", [False, True])
def test_special_tokens_have_the_names_they_have_in_transformers(
    tmp_path: Path, name: str, legacy: bool
) -> None:
    source = "".join(f"{{{{ {token}_token }}}} " for token in NAMES)
    given = TOKENS[name] if legacy else TOKENS[name] | {"added_tokens_decoder": {}}
    write_checkpoint(tmp_path, chat_template=source, bos_token="<|endoftext|>", **given)
    mapped = {"eos_token": "<other>", "sep_token": {"content": "<mapped>", "lstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(mapped))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(CHAT, tokenize=False)
    assert Tokenizer.load(tmp_path).render_chat(CHAT) == expected


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no chat template"):
        load(tmp_path, chat_template=None).render_chat(CHAT)


def test_messages_the_template_refuses_are_the_callers_mistake(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, chat_template=MISTRAL)
    with pytest.raises(ValueError, match="roles must alternate"):
        tokenizer.render_chat([CHAT[2], CHAT[1]])


def test_a_template_cannot_leave_its_sandbox(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, chat_template="{{ messages.__class__.__base__.__subclasses__() }}")
    with pytest.raises(ValueError, match="unsafe"):
        tokenizer.render_chat(CHAT)


def test_a_broken_template_is_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        load(tmp_path, chat_template="ok\n{% if %}")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("special_tokens_map.json", b"{", "Expecting"),
        ("special_tokens_map.json", b"[]", "not a JSON object"),
        ("special_tokens_map.json", b'{"cls_token": 7}', "cls_token is 7, not a text"),
        ("chat_template.jinja", b"\xff", "utf-8"),
        ("generation_config.json", b'{"eos_token_id": "x"}', "eos_token_id is 'x', not a token's"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(
    tmp_path: Path, file: str, content: bytes, says: str
) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file}: .*{says}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("template", [[{"template": "x"}], ["x"], 7])
def test_a_template_entry_that_makes_no_sense_is_shown(tmp_path: Path, template: Any) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json: chat_template has"):
        load(tmp_path, chat_template=template)


def test_developer_instructions_are_known_only_when_the_template_names_them(tmp_path: Path) -> None:
    plain = load(tmp_path / "plain").chat_template
    knows = load(tmp_path / "knows", chat_template="{{ 'developer' }}").chat_template
    assert plain is not None and not plain.knows_developer
    assert knows is not None and knows.knows_developer


NO_TEMPLATES = {
    "deep parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep loops": "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
    "a tag nobody knows": "{% do messages %}",
    "a filter nobody knows": "{{ messages|nothing }}",
}


@pytest.mark.parametrize("name", NO_TEMPLATES)
def test_a_template_that_cannot_be_compiled_is_an_error_of_the_checkpoint(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        load(tmp_path, chat_template=NO_TEMPLATES[name])


READERS = {
    "a loop": "{% for p in m.content %}[{{ p.text }}]{% endfor %}",
    "a loop by name": "{% set c = m['content'] %}{% for p in c %}[{{ p.text }}]{% endfor %}",
    "a filtered loop": "{% for p in m.content|selectattr('text') %}[{{ p.text }}]{% endfor %}",
    "get": "{% for p in m.get('content', []) %}[{{ p.text }}]{% endfor %}",
    "a macro": "{% macro w(x) %}{% for p in x %}[{{ p.text }}]{% endfor %}{% endmacro %}"
    "{{ w(m.content) }}",
    "a choice": "{% for p in (m.content if m.content is not string else []) %}[{{ p.text }}]"
    "{% endfor %}",
}


@pytest.mark.parametrize("name", READERS)
def test_parts_reach_whoever_walks_over_them(name: str) -> None:
    template = ChatTemplate(
        "{% for m in messages %}" + READERS[name] + "{% endfor %}", special_tokens={}
    )
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "[a][b]"
    as_text = "" if name == "a choice" else "[hi]"
    assert template.render([{"role": "user", "content": "hi"}]) == as_text
