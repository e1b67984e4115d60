"""Rules of Lark, as `protocol.text.grammar` reads it, over the tokens of a format."""

import json
import re
from collections.abc import Collection, Iterable

from protocol.formats.reading.bound import BoundFormat

_ANY = "(?s:.*)"
_META = re.compile(r"[\\.+*?()|\[\]{}^$/#&~-]")


class Rules:
    """Added as they are needed; none but `start` has a name that matters."""

    def __init__(self, bound: BoundFormat, *, ends: Collection[int]) -> None:
        """`ends`: tokens that end a text."""
        self._ids = {mark.literal: number for number, mark in bound.marks.items()}
        self._ends = ends
        names = "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True)))
        self._names = re.compile(f"({names or '(?!)'})")
        self._rules: list[str] = []

    def whole(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self._rules])

    def add(self, body: str) -> str:
        """The name of the rule."""
        return self._add(body)

    def json(self, form: str) -> str:
        """What follows `%json`."""
        return self._add(f"%json {form}")

    def nested(self, lark: str) -> str:
        """A whole grammar as a part of this one."""
        return self._add(f"%lark {{\n{lark}\n}}")

    def literal(self, text: str) -> str:
        """Its tokens by number. One at its end that ends the text is left out: that is what may
        follow a grammar anyway."""
        parts = [part for part in self._names.split(text) if part]
        if parts and self._ids.get(parts[-1]) in self._ends:
            parts.pop()
        return " ".join(map(self._part, parts))

    def before_token(self, text: str) -> str | None:
        """What of it comes before its first token; None: it has none."""
        found = self._names.search(text)
        return None if found is None else text[: found.start()]

    def any_until(self, after: str, but: Iterable[str] = ()) -> str:
        """Any text without tokens, up to `after` and with it; `but` are no part of the text. A
        token shows by itself where a text ends; text does not, so what comes first ends it."""
        first, *rest = self._names.split(after) if after else [""]
        others = "|".join(map(pattern_of, but))
        terminal = f"/{_ANY}{pattern_of(first)}/"
        terminal += f" & ~/{_ANY}({others}){_ANY}/" if others else ""
        text = self.terminal(terminal)
        if first and not rest:
            return self._add(text, "[lazy]")
        return f"{text if first else f'({text})?'} {self.literal(after[len(first) :])}"

    def terminal(self, pattern: str) -> str:
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {pattern}")
        return name

    def _part(self, part: str) -> str:
        number = self._ids.get(part)
        return json.dumps(part, ensure_ascii=False) if number is None else f"<[{number}]>"

    def _add(self, body: str, attributes: str = "") -> str:
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name


def pattern_of(text: str) -> str:
    """A regular expression of the text alone, as it stands between slashes."""
    return _META.sub(r"\\\g<0>", text).replace("\n", r"\n")
