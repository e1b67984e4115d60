"""Docstrings say what a thing is, not who calls it: that goes stale, and the imports say it."""

import re
from collections.abc import Iterator

import pytest
from support.source_tree import Module, parsed, product_modules

from tools.source_lines import docstrings

CALLERS = re.compile(
    r"\b[Cc]alled (?:only |once )?by\b"
    r"|\b[Uu]sed (?:only )?by `"
    r"|\b[Uu]sed only by\b"
    r"|\b[Uu]sed by [^`.;:,]{1,40}\b(?:only|alone)\b"
)
"""Who calls. `called in the loop's thread`, a promise about threads, is none of it."""


def test_no_docstring_tells_who_calls() -> None:
    found = [place for module in product_modules() for place in callers(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Called by the router.",
        "A decision, called by a source.",
        "`load` is called\n    once by a worker.",
        "Used by `engine.scheduler`, which decides.",
        "Used by the scheduler alone.",
        "Used only by tests.",
    ],
)
def test_a_caller_is_found(text: str) -> None:
    assert len(list(callers(parsed("engine/a.py", f'"""{text}"""')))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "Called in the event loop's thread.",
        "May be called from any thread.",
        "One end. Used by one thread; it is not alone.",
        "A key that is not understood is called out by name.",
    ],
)
def test_a_promise_about_threads_names_no_caller(text: str) -> None:
    assert list(callers(parsed("engine/a.py", f'"""{text}"""'))) == []


def callers(module: Module) -> Iterator[str]:
    """`path:line: phrase` of each docstring that tells who calls."""
    for node in docstrings(module.tree):
        assert isinstance(node.value, str)
        if found := CALLERS.search(" ".join(node.value.split())):
            yield f"{module.path}:{node.lineno}: {found.group()}"
