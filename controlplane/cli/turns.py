"""What a user says to `baton chat`: lines of stdin, a paste of several as one turn.

Knows no router and no command; `controlplane.cli.chat` gives a turn its meaning.
"""

import select
import sys
from collections.abc import Iterator

from protocol.errors import BatonError

PASTE_S = 0.05
"""Lines that come this soon after another were pasted with it: nobody types as fast."""


class UnreadableInput(BatonError):
    """A line that is no UTF-8 text."""


def turns() -> Iterator[str | UnreadableInput]:
    """The user's turns that are not blank, until the end of input. In a pipe a line is a turn."""
    if sys.stdin is None:  # closed by whoever started us
        return
    interactive = sys.stdin.isatty()
    if interactive:
        _prepare_editing()
    while True:
        try:
            turn = _read_turn() if interactive else _read_line("")
        except EOFError:
            sys.stdout.write("\n" if interactive else "")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")
            continue
        except UnicodeError:
            yield UnreadableInput("the input is not UTF-8 text")
            if not interactive:  # what of the pipe was read with it is lost
                return
            continue
        if turn.strip():
            yield turn


def _prepare_editing() -> None:
    """Gives `input` line editing, history and pastes that wait for Enter."""
    import readline

    readline.parse_and_bind("set enable-bracketed-paste on")


def _read_turn() -> str:
    lines = [_read_line("> ")]
    while select.select([sys.stdin], [], [], PASTE_S)[0]:
        try:
            lines.append(_read_line(""))
        except EOFError:
            break
    return "\n".join(lines)


def _read_line(prompt: str) -> str:
    """Raises EOFError, and UnicodeError for what is no text, lone surrogates included."""
    line = input(prompt)
    line.encode()
    return line
