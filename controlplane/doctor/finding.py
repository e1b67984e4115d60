"""One thing the doctor looked at: what it is, how bad, and what to do about it. Values only."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "warn"]
"""Ok: as it should be. Note: something faster or safer exists, or this cannot be told. Warn: a
transport does not work, or is much slower than this machine could be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    name: str
    """Stable, for scripts."""
    severity: Severity
    value: str
    """What was found, with its unit."""
    remedy: str = ""
    """One sentence, in the imperative. Empty when there is nothing to do."""


def ok(name: str, value: str) -> Finding:
    return Finding(name=name, severity="ok", value=value)


def note(name: str, value: str, remedy: str) -> Finding:
    return Finding(name=name, severity="note", value=value, remedy=remedy)


def warn(name: str, value: str, remedy: str) -> Finding:
    return Finding(name=name, severity="warn", value=value, remedy=remedy)


def size(num_bytes: int) -> str:
    """`num_bytes` in the largest unit of which there is at least one."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}".replace(".0 ", " ")
    return f"{num_bytes} bytes"
