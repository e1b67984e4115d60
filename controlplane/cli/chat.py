"""`baton chat`: a conversation in the terminal, token by token.

Reads turns from stdin, so it works in a pipe as well. Ctrl-C ends the answer being written, Ctrl-D
the conversation. What goes wrong with a turn is said on stderr, and the conversation goes on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from controlplane.cli.conversation import Answer, ChatSettings, TerminalChat
from controlplane.cli.http import RouterRefused, served_models
from controlplane.cli.terminal import complain, write
from controlplane.cli.turns import UnreadableInput, turns
from protocol.errors import BatonError
from protocol.process.settings import load

HELP = """\
/clear        begin a new conversation; the system prompt stays
/system TEXT  what the model is told before the conversation; without a text, nothing
/save FILE    write the conversation to a new file, as JSON
/help         this
//...         a turn that begins with a slash
"""
CONTEXT_FULL = "the context is full: /clear begins anew, /save FILE keeps what was said"


class TurnsFailed(BatonError):
    """Something of a pipe was not answered."""


def chat(argv: Sequence[str]) -> None:
    """Raises SettingsError, RouterUnreachable where nobody is there at the start, and in a pipe
    TurnsFailed."""
    settings = load(ChatSettings, argv, prog="baton chat")
    model = settings.model or served_models(settings)[0]
    conversation = TerminalChat(settings, model, settings.system)
    interactive = sys.stdin is not None and sys.stdin.isatty()
    if interactive:
        write(f"{model} at {settings.url}. Ctrl-C stops an answer, Ctrl-D ends, /help helps.\n")
    num_failed = 0
    for turn in turns():
        try:
            _take(conversation, turn)
        except BatonError as error:
            num_failed += 1
            _complain(error)
    if num_failed and not interactive:
        raise TurnsFailed(f"{num_failed} of the turns had no answer")


def _take(conversation: TerminalChat, turn: str | UnreadableInput) -> None:
    """One turn: a command, or something to ask. Raises BatonError for what cannot be done."""
    if isinstance(turn, UnreadableInput):
        raise turn
    if turn.startswith("/") and not turn.startswith("//"):
        _obey(conversation, turn)
        return
    answer = conversation.ask(turn.removeprefix("/"), show=write)
    if conversation.settings.verbose:
        write(_summary(answer))


def _obey(conversation: TerminalChat, line: str) -> None:
    command, _, rest = line.partition(" ")
    match command, rest.strip():
        case "/clear", "":
            conversation.messages.clear()
        case "/system", text:
            conversation.system = text
        case "/save", name if name:
            conversation.save(Path(name))
        case "/help", "":
            write(HELP)
        case _:
            raise UnknownCommand(f"{command}: is not /clear, /system, /save FILE or /help")


class UnknownCommand(BatonError):
    """A line that begins with a slash and is no command."""


def _complain(error: BatonError) -> None:
    complain(f"baton chat: {error}")
    if isinstance(error, RouterRefused) and error.code == "context_length_exceeded":
        complain(f"baton chat: {CONTEXT_FULL}")


def _summary(answer: Answer) -> str:
    ended = "stopped" if answer.stopped else f"{answer.num_tokens} tokens"
    return (
        f"[{answer.route}; first token {answer.first_token_s:.3f} s, {ended} in "
        f"{answer.total_s:.3f} s, {answer.cached_tokens} prompt tokens cached; {answer.request}]\n"
    )
