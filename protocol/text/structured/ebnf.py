"""Grammars in EBNF, as llama.cpp and xgrammar write it (`root ::= ...`), told in Lark.

Not known: literals in single quotes, look-ahead.
"""

import re

from llguidance.gbnf_to_lark import gbnf_to_lark

_TOKENS = re.compile(r'"(?:[^"\\\n]|\\.)*"?|/(?:[^/\\\n]|\\.)+/?|//[^\n]*|[A-Za-z_]\w*')
_ESCAPES = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_BEFORE_ALTERNATIVE = re.compile(r"(?<!\s)\s+\|")


def lark_of_ebnf(text: str) -> str:
    """Raises ValueError saying what is wrong. Recurses, and holds the interpreter lock for 1 ms a
    kilobyte: bound the text first."""
    text = _BEFORE_ALTERNATIVE.sub(_in_one_line, _ESCAPES.sub(_plain, text))
    try:
        lark = gbnf_to_lark(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except Exception as error:  # it raises nothing narrower
        raise ValueError(" ".join(str(error).split())[:200]) from error
    return _TOKENS.sub(_as_rule, lark)


def _plain(found: re.Match[str]) -> str:
    """Characters that the converter would write with too few digits, themselves."""
    digits = found[1] or found[2] or found[3]
    code = int(digits, 16) if digits else 0
    if code < 0x80:
        return f"\\x{code:02x}" if digits else found[0]
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise ValueError(f"\\{digits} is no character")
    return chr(code)


def _in_one_line(found: re.Match[str]) -> str:
    return " |" if "\n" in found[0] else found[0]


def _as_rule(found: re.Match[str]) -> str:
    """A name in capitals is a terminal: it takes all that it can and gives nothing back, which is
    not what a rule of EBNF means."""
    name = found[0]
    return f"of_{name.lower()}" if name.isupper() and name[0] not in '"/' else name
