"""The rows of docs/parameters.md: every parameter of every endpoint, and what becomes of it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"
_HEADING = re.compile(r"## `POST (?P<path>\S+)`")
_BASE = re.compile(r"Tried beside `(?P<base>\{.*\})`")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    path: str
    name: str
    of: frozenset[str]
    """Who documents it."""
    here: str
    """`supported`: it changes what is computed or answered. `hint`: it changes nothing. `refused`:
    400 with its name and the code."""
    code: str | None
    body: dict[str, Any]
    """A request without it."""
    value: Any

    def __str__(self) -> str:
        return f"{self.path} {self.name}"


def parameters() -> list[Parameter]:
    found: list[Parameter] = []
    path, base = "", {}
    for line in PAGE.read_text().splitlines():
        if heading := _HEADING.match(line):
            path = heading["path"]
        elif given := _BASE.match(line):
            base = json.loads(given["base"])
        elif line.startswith("| `"):
            found.append(_parameter(path, base, line))
    return found


def _parameter(path: str, base: dict[str, Any], line: str) -> Parameter:
    """`| name | of | here: code | value | beside |`"""
    name, of, here, value, beside = (cell.strip("` ") for cell in line.strip("|").split(" | "))
    word, _, code = here.partition(": ")
    assert word in ("supported", "hint", "refused"), line
    return Parameter(
        path=path,
        name=name,
        of=frozenset(of.split(", ")),
        here=word,
        code=code.strip("`") or None,
        body=base | json.loads(beside or "{}"),
        value=json.loads(value),
    )
