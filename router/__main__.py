"""`python -m router --model DIR ...`: exits 0 after a drain, 2 for a wrong setting, 3 for a
checkpoint that cannot be read, 1 when Redis cannot be reached; each with one line that says so."""

import sys
from collections.abc import Sequence
from functools import partial

import uvloop

from protocol.process.logs import configure_logging
from protocol.process.run import leave, run
from protocol.process.settings import load_or_exit
from router.http.trimming import use_few_arenas
from router.server import serve
from router.settings import RouterSettings


def main(argv: Sequence[str]) -> int:
    settings = load_or_exit(RouterSettings, argv, prog="router")
    configure_logging(process="router", level=settings.log_level)
    use_few_arenas()
    return run(
        "router",
        partial(serve, settings),
        parent_pid=settings.parent_pid,
        loop_factory=uvloop.new_event_loop,
    )


if __name__ == "__main__":
    leave(main(sys.argv[1:]))  # a look-up of a name that nobody answers may still be under way
