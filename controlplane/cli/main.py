"""The `baton` command. Errors are one line on stderr and an exit code that is not 0.

Subcommands import what they need when they run: `baton --version` and a supervisor that only
waits should not pay for torch, or for a web client.
"""

import errno
import io
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence

from controlplane.cli.terminal import complain, forget_unwritten, open_missing, write
from protocol.errors import BatonError, CheckpointError, SettingsError
from protocol.process.version import baton_version

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2
EXIT_BAD_CHECKPOINT = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
"""Both as a shell says it of a process that died of the signal."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Of a disk, or of a terminal that is gone."""
COMMANDS = frozenset({"up", "workers", "fetch", "chat", "status", "doctor"})

HELP = """\
usage: baton COMMAND [flags]

Serves large language models with prefill and decode in separate processes.

commands:
  up       serve a model on this machine; needs nothing else running
  workers  the workers of a node alone, for routers that are elsewhere
  fetch    a model's files into a cache that workers read
  chat     talk to a model that is being served
  status   show the workers, their pools and their load
  doctor   what would move KV on this machine, or to another, and why nothing faster

  baton COMMAND --help   the flags of a command
  baton --version        the version

examples:
  baton up                                    the small model that ships, on port 8000
  baton up --model DIR --prefill 2 --decode 2
  baton up --prefill 0                        colocated: no prefill workers
  baton chat --system "Answer briefly."
  baton status --json
  baton fetch --model ORG/NAME --cache DIR    prints the folder, for --model
  baton doctor                                and --serve here, --peer HOST:PORT there
"""


def main(argv: Sequence[str] | None = None) -> None:
    open_missing()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that lacks a character shows "?". What cannot be written is known when it
            # is flushed, by us: argparse would pass over it.
            stream.reconfigure(errors="replace", write_through=False)
    try:
        raise SystemExit(run(sys.argv[1:] if argv is None else argv))
    finally:
        forget_unwritten()


def run(argv: Sequence[str]) -> int:
    """The exit code."""
    name = f"baton {argv[0]}" if argv and argv[0] in COMMANDS else "baton"
    try:
        try:
            return _obey(argv)
        finally:
            sys.stdout.flush()
    except BatonError as error:
        complain(f"{name}: {error}")
        return _exit_code(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_PIPE_CLOSED
    except Exception as error:  # the edge of the process: a user gets a line, not a traceback
        complain(f"{name}: {_told(error)}")
        return EXIT_FAILED


def _obey(argv: Sequence[str]) -> int:
    match list(argv):
        case [] | ["-h" | "--help" | "help", *_]:
            write(HELP)
            return 0 if argv else EXIT_BAD_SETTINGS
        case ["-V" | "--version" | "version", *_]:
            write(f"baton {baton_version()}\n")
        case [name, *rest] if name in COMMANDS:
            _command(name)(rest)
        case [unknown, *_]:
            raise SettingsError(f"unknown command: {unknown}; see baton --help")
    return 0


def _exit_code(error: BatonError) -> int:
    if isinstance(error, SettingsError):
        return EXIT_BAD_SETTINGS
    if isinstance(error, CheckpointError):
        return EXIT_BAD_CHECKPOINT
    return int(getattr(error, "exit_code", EXIT_FAILED))  # of a child that ended so


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"could not write: {error.strerror}"
    with tempfile.NamedTemporaryFile(
        "w", prefix="baton-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
    ) as file:
        traceback.print_exception(error, file=file)
    return f"a mistake of Baton's, {type(error).__name__}; please report it with {file.name}"


def _command(name: str) -> Callable[[Sequence[str]], None]:
    if name == "up":
        from controlplane.local.up import up

        return up
    if name == "workers":
        from controlplane.local.workers import workers

        return workers
    if name == "fetch":
        from controlplane.fetch.fetch import fetch

        return fetch
    if name == "chat":
        from controlplane.cli.chat import chat

        return chat
    if name == "status":
        from controlplane.cli.status import status

        return status
    from controlplane.doctor.doctor import doctor

    return doctor


if __name__ == "__main__":
    main()
