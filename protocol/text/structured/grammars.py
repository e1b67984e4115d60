"""Grammars of answers of one form: JSON, a regular expression, a choice, a client's own grammar.

Each is Lark as `protocol.text.grammar` reads it, checked, with a rule `start`. White space in JSON
is bounded, or a model would fill its answer with it. Bounded is what the check costs: a second for
64 KiB of the worst known. May take as long: no work for an event loop.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from protocol.text.grammar import check_grammar
from protocol.text.structured.ebnf import lark_of_ebnf
from protocol.text.structured.limits import SchemaError, inner_schemas, merges, reference
from protocol.text.structured.references import Path
from protocol.text.structured.schema import normalised_schema

WHITESPACE = r"( |\r?\n( {0,24}|\t{0,8}))?"
"""Wherever JSON may have it: a blank, or a line's end and what is before the next. Models without
sense take all they may."""
MAX_RULES = 1000
"""Rules, groups and sets of a client's grammar together, and colons in its texts. The compiler goes
down them by recursion in machine code, and ran out of 8 MB at 2,500."""
MAX_ALTERNATIVES = 2000
"""`|` in a client's grammar. Each may be a state at one place of a text, which are compared with
each other: 15 ms for so many, a second for ten times as many."""
MAX_BLANKS = 64
"""Characters of a client's pattern for them."""
MAX_CHECKED = 128 << 10
"""Characters of schemas that are checked alone to find which one is wrong; as many as take a
second at worst."""
MAX_OFTEN = 4 << 10
"""Characters of forms of which those that were right lately are known: agents send the same tools
at every turn, and each takes 1.5 ms. Up to 8 MB."""
_check_often = lru_cache(maxsize=2048)(check_grammar)
_ONE_OF = (
    "the alternatives of oneOf must exclude each other by their types, or by the constants of a"
    " property that each requires; anyOf need not"
)
_COMPILING = re.compile(r"^.*failed to compile JSON schema: ", re.DOTALL)
_RULE = re.compile(r"::=|[:\[(]")
_LARK = re.compile(
    r"^[ \t]*(%llguidance\b|\??start[ \t]*(\[[^\]\n]*\][ \t]*)?:(?!:=))", re.MULTILINE
)
_SOFTER = re.compile(r"[\[,]\s*temperature\s*=\s*[\d.]")
_BLANK = r"(?: |\n|\r|\t|\\[nrt])"
_BLANKS = re.compile(rf"(?:\[{_BLANK}+\]|{_BLANK}|\\s|[?|()]|\{{\d{{1,3}}(?:,\d{{1,3}})?\}})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonStyle:
    whitespace: str | None = WHITESPACE
    """A regular expression; None: none at all."""
    closed: bool = False
    """Objects have the properties that their schema names, and no others that it merely lets be."""


STYLE = JsonStyle()


def json_grammar(schema: object, style: JsonStyle = STYLE) -> str:
    """Of documents valid by a JSON Schema. Raises SchemaError."""
    return f"start: %json {json_form(schema, style)}"


def json_form(schema: object, style: JsonStyle = STYLE) -> str:
    """What follows `%json` in Lark. Raises SchemaError."""
    form = normalised_schema(schema)
    if style.closed:
        _close(form)
    text = f"start: %json {json.dumps(form)}"
    try:
        (_check_often if len(text) <= MAX_OFTEN else check_grammar)(text)
    except ValueError as error:
        raise _found(form, str(error)) from error
    space: dict[str, object] = {"whitespace_flexible": style.whitespace is not None}
    if style.whitespace is not None:
        space["whitespace_pattern"] = style.whitespace
    return json.dumps({**form, "x-guidance": space}, ensure_ascii=False)


def regex_grammar(pattern: str) -> str:
    """Of texts that it matches as a whole; look-around and references back are refused. Raises
    ValueError."""
    if not pattern:
        raise ValueError("must not be empty")
    in_slashes = re.sub(r"\\.|/|\n", _in_slashes, pattern, flags=re.DOTALL)
    return _checked(f"start: /{in_slashes}/")


def choice_grammar(choices: Sequence[str]) -> str:
    """Raises ValueError."""
    if not choices:
        raise ValueError("needs at least one text")
    # One terminal: as alternatives of a rule, 2,000 are too many, and time goes with their square.
    texts = " | ".join(json.dumps(choice) for choice in dict.fromkeys(choices))
    return _checked(f"start: CHOICE\nCHOICE: {texts}")


def client_grammar(text: str) -> str:
    """Of a client's EBNF or Lark; schemas in it are treated as all are. Raises ValueError."""
    if len(_RULE.findall(text)) > MAX_RULES:
        raise ValueError(f"at most {MAX_RULES} rules, groups and sets")
    if text.count("|") > MAX_ALTERNATIVES:
        raise ValueError(f"at most {MAX_ALTERNATIVES} alternatives")
    if _SOFTER.search(text):
        raise ValueError("a temperature of a rule's own is not supported")
    if not text.strip() or text.lstrip().startswith("{"):
        raise ValueError("must be a grammar in EBNF or Lark")
    if _LARK.search(text) is None:
        return _checked(lark_of_ebnf(text))
    return _checked(_with_forms(text))


def blanks(pattern: str) -> str:
    r"""A client's pattern of white space, such as `[\n ]?`. ValueError where it could match
    anything else, or any number of characters."""
    if len(pattern) > MAX_BLANKS or not _BLANKS.fullmatch(pattern):
        raise ValueError(r"must match blanks, \n, \r and \t alone, and a bounded number of them")
    pattern = pattern.replace(r"\s", r"[ \n\r\t]")
    if pattern:
        regex_grammar(pattern)
    return pattern


def _checked(lark: str) -> str:
    try:
        check_grammar(lark)
    except ValueError as error:
        raise ValueError(_plain(str(error))) from error
    return lark


def _plain(why: str) -> str:
    if "coerce_one_of" in why:
        return _ONE_OF
    return " ".join(_COMPILING.sub("", why).split())[:300]


def _in_slashes(found: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(found[0], found[0])


def _with_forms(lark: str) -> str:
    """Every `%json {...}` by `json_form`."""
    parts, at = [], 0
    while (start := lark.find("%json", at)) >= 0:
        begin = len(lark) - len(lark[start + 5 :].lstrip())
        try:
            schema, end = json.JSONDecoder().raw_decode(lark, begin)
        except (ValueError, RecursionError) as error:
            raise ValueError("no JSON after %json") from error
        parts += [lark[at:start], f"%json {json_form(schema)}"]
        at = end
    return "".join([*parts, lark[at:]])


def _close(form: dict[str, Any]) -> None:
    """But what is merged with something else, which may name more properties."""
    defs = form.get("$defs", {})
    nodes: list[Any] = [form, *defs.values()]
    merged, seen = set[int](), set[int]()
    left = [(node, False) for node in nodes]
    while left:
        node, is_merged = left.pop()
        is_merged = is_merged or merges(node)
        if not isinstance(node, dict) or id(node) in (merged if is_merged else merged | seen):
            continue
        (merged if is_merged else seen).add(id(node))
        nodes.append(node)
        name = reference(node)
        inner = [one for _, one in inner_schemas(node)] + ([] if name is None else [defs[name]])
        left.extend((one, is_merged) for one in inner if is_merged or name is None)
    for node in nodes:
        if "properties" in node and "patternProperties" not in node and id(node) not in merged:
            node.setdefault("additionalProperties", False)


def _found(form: dict[str, Any], why: str) -> SchemaError:
    """What the compiler says of the whole, by the smallest part of which it says it."""
    defs = form.get("$defs", {})
    node: Any = form
    path: Path = None
    seen = set[str]()
    left = MAX_CHECKED
    while True:
        inner: list[tuple[Path, Any]] = [((path, step), one) for step, one in inner_schemas(node)]
        if (name := reference(node)) is not None and name not in seen:
            seen.add(name)
            inner.append((path, defs[name]))
        for at, one in inner:
            text = f"start: %json {json.dumps({**one, '$defs': defs})}" if one else ""
            left -= len(text)
            if left > 0 and text and (wrong := _wrong(text)):
                node, path, why = one, at, wrong
                break
        else:
            return SchemaError(path, _plain(why))


def _wrong(text: str) -> str:
    try:
        check_grammar(text)
    except ValueError as error:
        return str(error)
    return ""
