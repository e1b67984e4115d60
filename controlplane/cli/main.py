"""The `baton` command. Errors are one line on stderr and an exit code that is not 0.

Subcommands import what they need when they run: `baton --version` and a supervisor that only
waits should not pay for torch, or for a web client.
"""

import sys
from collections.abc import Callable, Sequence

from controlplane.checkout import baton_version
from protocol.errors import BatonError, SettingsError

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2

HELP = """\
usage: baton COMMAND [flags]

Serves large language models with prefill and decode in separate processes.

commands:
  up       serve a model on this machine; needs nothing else running
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
  baton doctor                                and --serve here, --peer HOST:PORT there
"""


def main(argv: Sequence[str] | None = None) -> None:
    raise SystemExit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """The exit code."""
    match list(argv):
        case [] | ["-h" | "--help" | "help", *_]:
            print(HELP, end="")
            return 0 if argv else EXIT_BAD_SETTINGS
        case ["-V" | "--version" | "version", *_]:
            print(f"baton {baton_version()}")
            return 0
        case ["up", *rest]:
            return _guarded("up", _up, rest)
        case ["chat", *rest]:
            return _guarded("chat", _chat, rest)
        case ["status", *rest]:
            return _guarded("status", _status, rest)
        case ["doctor", *rest]:
            return _guarded("doctor", _doctor, rest)
        case [unknown, *_]:
            print(f"baton: unknown command: {unknown}; see baton --help", file=sys.stderr)
            return EXIT_BAD_SETTINGS
    raise AssertionError("unreachable")


def _guarded(name: str, command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    try:
        command(argv)
    except BatonError as error:
        print(f"baton {name}: {error}", file=sys.stderr)
        return EXIT_BAD_SETTINGS if isinstance(error, SettingsError) else EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    return 0


def _up(argv: Sequence[str]) -> None:
    from controlplane.local.up import up

    up(argv)


def _chat(argv: Sequence[str]) -> None:
    from controlplane.cli.chat import chat

    chat(argv)


def _status(argv: Sequence[str]) -> None:
    from controlplane.cli.status import status

    status(argv)


def _doctor(argv: Sequence[str]) -> None:
    from controlplane.doctor.doctor import doctor

    doctor(argv)


if __name__ == "__main__":
    main()
