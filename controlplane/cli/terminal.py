"""What `baton` writes: to a terminal nothing but text, whoever it comes from.

A model, a router and a user's own paste can hold sequences that move the cursor, name the window or
make the terminal type. A pipe gets what came, as it came.
"""

import os
import re
import sys
from contextlib import suppress

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """With a mark in place of each control character that is no newline and no tab."""
    return _CONTROL.sub("\ufffd", text)


def write(text: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def complain(text: str) -> None:
    """One line on stderr, if anyone is there."""
    with suppress(OSError):
        sys.stderr.write(visible(" ".join(text.splitlines())) + "\n")
        sys.stderr.flush()


def open_missing() -> None:
    """Streams that whoever started us has closed: what is written there is for nobody."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def forget_unwritten() -> None:
    """What has no reader or no room: flushing it at exit would fail once more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
