"""A line of a table of measurements, as one process tells it to another that prints them all.

Told on stdout, one JSON object after a word that no other output begins with.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

WORD = "row "
HEAD = ("part", "result", "limit", "share", "passed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a part measured, beside its limit; a text that does not apply is empty."""

    part: str
    result: str
    """With its unit."""
    limit: str = ""
    """What the result is held to, with its unit."""
    share: float | None = None
    """Of the limit that was reached."""
    passed: bool | None = None
    """None: nothing was asked of it."""


def tell(row: Row) -> None:
    print(WORD + json.dumps(asdict(row)), flush=True)


def told(output: str) -> Iterator[Row]:
    """The rows among whatever else was written."""
    for line in output.splitlines():
        if line.startswith(WORD):
            yield Row(**json.loads(line.removeprefix(WORD)))


def table(rows: Iterable[Row]) -> str:
    """Columns as wide as their widest text."""
    lines = [HEAD, *map(_texts, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_line(line, widths) for line in lines)


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    padded = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
    return "  ".join(padded).rstrip()


def _texts(row: Row) -> tuple[str, ...]:
    share = "" if row.share is None else f"{row.share:.0%}"
    passed = {None: "", True: "yes", False: "NO"}[row.passed]
    return (row.part, row.result, row.limit, share, passed)
