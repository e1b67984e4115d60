"""What rendering a chat may cost, and what an operation of its template may make of values."""

import re
from collections.abc import Iterable
from time import sleep, thread_time
from typing import Any

MAX_SECONDS = 3.0
"""Of processor time. 2,000 messages with 100 tools take 0.07 by most templates; by one of quadratic
time (Gemma 4) 1,000 messages take 2.6."""
MAX_REMADE = 32
"""Times the largest text that all operations together may make."""
STEPS_PER_LOOK = 64
"""Between looks at the clock, about 50 us; other threads may run then."""
STEP_CHARS = 4096
"""As many cost another step."""
MAX_BITS = 1 << 12
NODE_CHARS = 32
"""What a value inside a list or an object counts for, beside its text."""
WIDTH = re.compile(r"%(\([^)]*\))?[-+ #0-9.]*?(\d{5}|\*)|\{[^{}]*[:!][^{}]*(\{|\d{5})")
"""In a format: a width that is large or that comes from a value."""

MULTIPLYING = frozenset(
    """
    batch center expandtabs indent join ljust replace rjust slice to_bytes translate urlize
    wordwrap xmlattr zfill
    """.split()  # noqa: SIM905 - words read better so
)
"""Methods and filters whose result may be as long as one thing they get times another."""


class TemplateTooCostly(ValueError):
    """More text or time than a chat may take."""


class Meter:
    """What one rendering may still use. For one thread."""

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self._num_chars_left = max_chars * MAX_REMADE
        self._num_steps = 0
        self._ends_at = thread_time() + MAX_SECONDS

    def step(self, num_chars: int = 0) -> None:
        """One more operation, which writes so much."""
        self._num_steps += 1 + num_chars // STEP_CHARS
        self._num_chars_left -= num_chars
        if self._num_chars_left < 0:
            raise TemplateTooCostly(f"it makes more than {MAX_REMADE} times what fits")
        if self._num_steps >= STEPS_PER_LOOK:
            self._num_steps = 0
            sleep(0)  # the event loop waits for the interpreter lock no longer than this
            if thread_time() > self._ends_at:
                raise TemplateTooCostly(f"it takes more than {MAX_SECONDS:g} s")

    def may_make(self, num_chars: int) -> None:
        if num_chars > self.max_chars:
            raise TemplateTooCostly(f"it makes a text of more than {self.max_chars} characters")

    def may_count(self, num_bits: int) -> None:
        if num_bits > MAX_BITS:
            raise TemplateTooCostly(f"it makes a number of more than {MAX_BITS} bits")

    def made(self, value: Any) -> Any:
        """`value`, counted."""
        num_chars = self.weight(value)
        self.may_make(num_chars)
        self.step(num_chars)
        return value

    def weight(self, value: Any, *, per_node: int = NODE_CHARS, per_level: int = 0) -> int:
        """Characters that writing `value` out takes, about; no more are counted than may be."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            return value.bit_length() // 3
        if not isinstance(value, list | tuple | dict | set):
            return 0
        total, level = 0, [value]
        while level and total <= self.max_chars:
            below: list[Any] = []
            for item in level:
                total += per_node
                if isinstance(item, list | tuple | set):
                    below.extend(item)
                elif isinstance(item, dict):
                    below.extend(item)
                    below.extend(item.values())
                elif isinstance(item, str | int | bytes):
                    total += self.weight(item)
                if total + len(below) > self.max_chars:
                    break
            level, per_node = below, per_node + per_level
        return total


def listed(value: Any) -> Any:
    """What can be walked over once or lazily, as a list, which can be weighed."""
    plain = isinstance(value, str | bytes | list | tuple | dict | set)
    return list(value) if isinstance(value, Iterable) and not plain else value


def growth(meter: Meter, name: str, value: Any, *args: Any) -> int:
    """At most so many characters come of the method or filter `name` of `value`; 0 where it cannot
    multiply what it gets."""
    most = max((arg if isinstance(arg, int) else meter.weight(arg) for arg in args), default=0)
    match name, args:
        case "tojson", _:
            return meter.weight(value, per_node=NODE_CHARS + 2 * most, per_level=2 * most)
        case "round", _:
            return most * 1000  # it raises 10 to this
        case "sum", _ if any(isinstance(arg, list | tuple) for arg in args):
            return meter.max_chars + 1  # lists add up in quadratic time
        case (("format" | "format_map"), _):
            text = str(value)
            wide = WIDTH.search(text) is not None
            places = text.count("%") + text.count("{")
            return meter.max_chars + 1 if wide else len(text) + places * most
        case "replace", (str() as old, str() as new, *_) if isinstance(value, str):
            return len(value) + value.count(old) * len(new)
        case _ if name in MULTIPLYING:
            return (1 + meter.weight(value)) * (1 + most)
        case _:
            return 0
