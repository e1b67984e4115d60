"""Patterns, choices and grammars of clients: which texts they let through, and what is refused."""

from contextlib import suppress
from time import process_time

import pytest
from support.json_schemas import accepts

from protocol.text.structured.grammars import (
    MAX_ALTERNATIVES,
    MAX_RULES,
    blanks,
    choice_grammar,
    client_grammar,
    json_grammar,
    regex_grammar,
)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d{3}-\d{4}", ["555-1234"], ["555-123", "x555-1234", "555-12345"]),
        ("^ab|cd$", ["ab", "cd"], ["a", "abcd"]),
        ("a/b[/]\\/c", ["a/b//c"], ["ab/c"]),
        ("a\nb", ["a\nb"], ["ab", "a b"]),
        ("(?s:.*)end", ["the\nend"], ["the"]),
        ("[^a]+", ["bé東🙂"], ["ba"]),
        ("x*", ["", "xx"], ["y"]),
    ],
)
def test_a_pattern_matches_the_whole_text(pattern: str, yes: list[str], no: list[str]) -> None:
    grammar = regex_grammar(pattern)
    assert [accepts(grammar, text) for text in [*yes, *no]] == [True] * len(yes) + [False] * len(no)


@pytest.mark.parametrize("pattern", ["", "(", "(?=a)b", r"(a)\1", r"\bword\b", "a{2,1}"])
def test_a_pattern_that_cannot_be_followed_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        regex_grammar(pattern)


def test_one_of_a_choice_is_said_to_the_letter() -> None:
    choices = ["yes", "yes, but", "", 'a "quoted" \\ one\n', "é/🙂", "\x07"]
    grammar = choice_grammar(choices)
    assert all(accepts(grammar, text) for text in choices)
    assert not any(accepts(grammar, text) for text in ["ye", "yes,", "no", "a"])
    with pytest.raises(ValueError, match="at least one"):
        choice_grammar([])


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('root ::= "a" | "b"', ["a", "b"], ["ab", ""]),
        ('root ::= "YES" | "I/O/A"', ["YES", "I/O/A"], ["yes"]),
        ('root ::= word " " word\nword ::= [a-z ]+', ["ab cd", "a  b"], ["ab", "A b"]),
        ('root ::= WORD "x"\nWORD ::= [a-z]+', ["abx"], ["x"]),
        (
            'root ::= item\n  | "none"\nitem ::= ("- " [^\\n]+ "\\n"){1,2}',
            ["none", "- a\n"],
            ["- "],
        ),
        ('root ::= "\\u00e9\\x41" [\\u0400-\\u04ff]', ["éAж"], ["éAz"]),
        ('root ::= "x" foo-bar? # note\nfoo-bar ::= "y" root', ["x", "xyx"], ["xy"]),
        ('root ::= "start: \\"a\\""', ['start: "a"'], ["a"]),
        ('start: "a" b\nb: /[0-9]+/', ["a12"], ["a", "12"]),
        ('?start: x*\nx: "a"i | "b"', ["", "Ab"], ["c"]),
        ('%llguidance {}\nstart: %json {"type": "array"}', ["[1]"], ["[  ]"]),
    ],
)
def test_a_clients_grammar_is_ebnf_or_lark(grammar: str, yes: list[str], no: list[str]) -> None:
    made = client_grammar(grammar)
    assert [accepts(made, text) for text in [*yes, *no]] == [True] * len(yes) + [False] * len(no)


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        ("", "EBNF or Lark"),
        ('{"grammars": [{"json_schema": {}}]}', "EBNF or Lark"),
        ("root ::= nowhere", "nowhere"),
        ('rule ::= "a"', "root"),
        ("root ::= 'a'", "line 1"),
        ("root ::= " + "(" * 500, "nested"),
        ("start: nowhere", "nowhere"),
        ('start: "a', "lexer"),
        ('start: "a"\n"b"', "b"),
        ("start[temperature=0.5]: /a/", "temperature"),
        ('start: %json {"not": {}}', "not: not supported"),
        ('start: %json {"multipleOf": 999983}', "multipleOf"),
        ("start: %json [", "no JSON"),
        ("\n".join(f"a{n}: a{n + 1}" for n in range(MAX_RULES + 1)), f"at most {MAX_RULES}"),
        ("root ::= " + "[a]" * (MAX_RULES + 1), f"at most {MAX_RULES}"),
        ('root ::= "\\ud800"', "no character"),
        ("start: " + '"a"|' * (MAX_ALTERNATIVES + 1), f"at most {MAX_ALTERNATIVES}"),
    ],
)
def test_a_clients_grammar_that_is_none_is_refused(grammar: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        client_grammar(grammar)


@pytest.mark.parametrize("again", ["a[", "start[", "\nstart[", "\n", "\n ", '"\\', "/\\", "a "])
@pytest.mark.parametrize("before", ["", 'root ::= "a" ', 'start: "a" '])
def test_a_text_without_sense_is_read_in_a_moment(before: str, again: str) -> None:
    """With the interpreter lock held: each stopped a router for up to minutes."""
    began = process_time()
    with suppress(ValueError):
        client_grammar(before + again * (60_000 // len(again)))
    assert process_time() - began < 3


def test_of_thousands_of_choices_each_can_be_said() -> None:
    """Alternatives of a rule would be too many for one place of a text."""
    choices = [f"option {index} of many" for index in range(5000)]
    assert accepts(choice_grammar(choices), choices[4321])
    assert accepts(choice_grammar(["same"] * 5000), "same")


def test_a_short_schema_that_comes_again_is_not_compiled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = {"type": "object", "properties": {"comes_again": {}}}
    made = json_grammar(schema)
    monkeypatch.setattr("protocol.text.grammar.LLMatcher", None)
    assert json_grammar(schema) == made


def test_the_longest_chain_of_rules_that_is_let_through_compiles() -> None:
    """The compiler would end the process."""
    rules = [f"a{n}: a{n + 1}" for n in range(MAX_RULES - 3)]
    assert client_grammar("\n".join(["start: a0", *rules, f'a{MAX_RULES - 3}: "x"']))


@pytest.mark.parametrize("pattern", ["", " ?", r"[\n ]?", r"\s", "( |\n){0,2}", r"\n?[ \t]{0,8}"])
def test_blanks_may_be_told(pattern: str) -> None:
    assert r"\s" not in blanks(pattern)


@pytest.mark.parametrize("pattern", ["[ ]*", r"\s+", " {1,}", "a", "[^ ]", ".", "(", "]", " " * 65])
def test_blanks_are_bounded_and_nothing_else(pattern: str) -> None:
    with pytest.raises(ValueError):
        blanks(pattern)
