"""A template and a chat, whoever wrote them, end soon and in little memory."""

from typing import Any

import pytest

from protocol.text import template_meter
from protocol.text.chat_template import ChatTemplate

CHAT = [{"role": "user", "content": "hi"}]
LONG = "{% set long = 'x' * 1000000 %}"
GROW = "{% set ns = namespace(x='ab', l=[1], n=10) %}{% for _ in range(60) %}GROW{% endfor %}"
WITHOUT_END = {
    "a loop of loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "a loop whose test is never met": "{% for i in range(99999) %}{% for j in range(99999) if not j"
    " + 1 %}{% endfor %}{% endfor %}",
    "a loop of filters": "{% for i in range(99999) %}{{ range(99999)|sort|length }}{% endfor %}",
    "a loop of searches": LONG + "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% set found = (long[:50000] + 'y') in long %}{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(60) }}",
}
TOO_MUCH = {
    "a range": "{% for i in range(10**9) %}x{% endfor %}",
    "text times a number": "{{ 'a' * 10**9 }}",
    "a number times text": "{% set n = 10**9 %}{{ n * 'a' }}",
    "a list times a number": "{{ [1] * 10**9 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "squares of squares": GROW.replace("GROW", "{% set ns.n = ns.n * ns.n %}"),
    "text beside itself": GROW.replace("GROW", "{% set ns.x = ns.x ~ ns.x %}"),
    "text plus itself": GROW.replace("GROW", "{% set ns.x = ns.x + ns.x %}"),
    "a list plus itself": GROW.replace("GROW", "{% set ns.l = ns.l + ns.l %}"),
    "a list of itself": GROW.replace("GROW", "{% set ns.l = [ns.l, ns.l] %}"),
    "an object of itself": GROW.replace("GROW", "{% set ns.l = {'a': ns.l, 'b': ns.l} %}"),
    "dict() of itself": GROW.replace("GROW", "{% set ns.l = dict(a=ns.l, b=ns.l) %}"),
    "a block of itself": GROW.replace(
        "GROW", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"
    ),
    "a block of much": LONG + "{% set y %}{% for i in range(9999) %}{{ long }}{% endfor %}"
    "{% endset %}",
    "much static text": "{% macro m() %}{% for i in range(99999) %}"
    + "static " * 10_000
    + "{% endfor %}{% endmacro %}{{ m() }}",
    "output": LONG + "{% for i in range(9999) %}{{ long }}{% endfor %}",
    "center": "{{ 'a'|center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "a width in %": "{{ '%1000000000d' % 1 }}",
    "a width given to %": "{{ '%*d' % (1000000000, 1) }}",
    "a width in format": "{{ '{:1000000000}'.format(1) }}",
    "a width given to format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a width in the filter format": "{{ '%1000000000d'|format(1) }}",
    "many places": LONG + "{{ ('%(a)s' * 10000) % {'a': long} }}",
    "many fields": LONG + "{{ ('{0}' * 10000).format(long) }}",
    "replace": LONG + "{{ long.replace('x', long) }}",
    "replace nothing": LONG + "{{ long|replace('', long) }}",
    "join": LONG + "{{ long.join(range(99999)|map('string')) }}",
    "join by a filter": LONG + "{{ range(99999)|join(long) }}",
    "indent": "{{ ('x\n' * 100000)|indent(100000) }}",
    "tojson's indent": "{{ [1, 2, 3]|tojson(indent=10**9) }}",
    "tojson's separators": LONG + "{{ (range(9999)|list)|tojson(separators=(long, ':')) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "translate": LONG + "{{ long.translate({120: long}) }}",
    "batch": "{{ [1]|batch(10**9, 'x')|list }}",
    "bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "a sum of lists": "{{ ([[1]] * 50000)|sum(start=[]) }}",
}
FAILING = {
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursion of a loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "an undefined name": "{{ a.b }}",
    "a missing key": "{{ {}['a'].b }}",
    "what is forbidden": "{{ ''.__class__.__mro__ }}",
    "a change of what was given": "{{ messages.append(1) }}",
    "types": "{{ 1 + 'a' }}",
    "arithmetic": "{{ 1 // 0 }}",
    "an infinite number": "{{ (10.0 ** 308 * 10)|int }}",
    "an include": "{% include 'x' %}",
    "lipsum": "{{ lipsum(1000000) }}",
    "its own word": "{{ raise_exception('only users') }}",
}
SCHEMA_WALK = """\
{%- macro kind(schema) -%}
{%- if schema.type is iterable and schema.type is not string -%}
{%- for one in schema.type %}{{ kind({'type': schema.type}) }}{% endfor -%}
{%- else %}{{ schema.type }}{% endif -%}
{%- endmacro -%}
{%- for tool in tools %}{{ kind(tool) }}{% endfor -%}
"""


@pytest.mark.parametrize("name", WITHOUT_END)
def test_work_without_end_is_the_clients_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(template_meter, "MAX_SECONDS", 0.1)
    template = ChatTemplate(WITHOUT_END[name], special_tokens={})
    with pytest.raises(ValueError, match="refused them: it takes more than"):
        template.render(CHAT)


@pytest.mark.parametrize("name", TOO_MUCH)
def test_nothing_grows_beyond_what_fits(name: str) -> None:
    template = ChatTemplate(TOO_MUCH[name], special_tokens={})
    with pytest.raises(ValueError, match=r"refused them: (it makes|Range too big)"):
        template.render(CHAT, max_chars=1000)


@pytest.mark.parametrize("name", FAILING)
def test_every_failure_of_a_template_is_the_clients_mistake(name: str) -> None:
    template = ChatTemplate(FAILING[name], special_tokens={})
    with pytest.raises(ValueError, match=r"messages: the chat template refused them: .{5}"):
        template.render(CHAT)


def test_a_walk_over_a_tools_schema_that_does_not_end_is_the_clients_mistake() -> None:
    template = ChatTemplate(SCHEMA_WALK, special_tokens={})
    assert template.render(CHAT, tools=[{"type": "integer"}]) == "integer"
    with pytest.raises(ValueError, match="recursion"):
        template.render(CHAT, tools=[{"type": ["integer", "null"]}])


def test_deep_values_end_soon() -> None:
    deep: Any = "leaf"
    for _ in range(3000):
        deep = {"properties": deep}
    for source in ("{{ deep|tojson }}", "{{ deep }}", "{{ deep|tojson(indent=2) }}"):
        with pytest.raises(ValueError, match="refused them"):
            ChatTemplate(source, special_tokens={}).render(CHAT, deep=deep)


def test_indents_of_wide_deep_values_are_bounded() -> None:
    deep: Any = list(range(50_000))
    for _ in range(400):
        deep = [deep]
    template = ChatTemplate("{{ deep|tojson(indent=4) }}", special_tokens={})
    with pytest.raises(ValueError, match="it makes a text"):
        template.render(CHAT, deep=deep)


def test_namespaces_that_hold_each_other_are_not_written_out() -> None:
    source = GROW.replace("GROW", "{% set c = namespace(a=ns.x, b=ns.x) %}{% set ns.x = c %}")
    assert ChatTemplate(source + "{{ ns.x }}", special_tokens={}).render(CHAT) == "<Namespace>"


def test_a_chat_longer_than_fits_is_refused_by_length() -> None:
    template = ChatTemplate("{{ messages[0].content }}", special_tokens={})
    assert template.render(CHAT, max_chars=2) == "hi"
    with pytest.raises(ValueError, match="more than 1 characters"):
        template.render(CHAT, max_chars=1)


def test_a_long_chat_with_many_tools_renders() -> None:
    source = (
        "{{ tools|tojson(indent=4) }}{% for m in messages %}{% if loop.previtem is defined %}"
        "{{ loop.previtem.role ~ ':' ~ loop.index }}{% endif %}{{ m.content|trim }}"
        "{% set kept = messages|selectattr('role', 'equalto', 'user')|list %}{% endfor %}"
    )
    tools = [{"name": f"f{index}", "parameters": {"a": {"type": "string"}}} for index in range(200)]
    chat = [{"role": "user", "content": " word" * 50}] * 200
    assert len(ChatTemplate(source, special_tokens={}).render(chat, tools=tools)) > 60_000
