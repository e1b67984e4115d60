"""`python -m router ...`: exits 0 after a drain, 2 for a wrong setting, 3 for a checkpoint that
cannot be read; each with one line that says so. Redis is waited for."""

import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from protocol.process.early_end import end_when_asked

if TYPE_CHECKING:
    from router.settings import RouterSettings


def main(argv: Sequence[str]) -> int:
    from protocol.process.logs import configure_logging
    from protocol.process.run import run
    from protocol.process.settings import load_or_exit
    from router.processes.supervise import supervise
    from router.settings import RouterSettings

    settings = load_or_exit(RouterSettings, argv, prog="router")
    if settings.processes > 1:
        configure_logging(process="router", level=settings.log_level)
        keep = partial(supervise, settings, argv)
        return run("router", keep, parent_pid=settings.parent_pid)
    return _serve(settings)


def _serve(settings: "RouterSettings") -> int:
    import uvloop

    from protocol.process.logs import configure_logging
    from protocol.process.run import run
    from router.http.trimming import use_few_arenas  # the process that serves nobody needs none
    from router.server import serve

    is_alone = settings.siblings is None
    name = "router" if is_alone else f"router-{settings.process}"
    configure_logging(process=name, level=settings.log_level)
    use_few_arenas()
    if not is_alone:  # a terminal's Ctrl-C is for whoever started us, and it tells us
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return run(
        name,
        partial(serve, settings),
        parent_pid=settings.parent_pid,
        loop_factory=uvloop.new_event_loop,
        signals=(signal.SIGTERM, signal.SIGINT) if is_alone else (signal.SIGTERM,),
    )


if __name__ == "__main__":
    end_when_asked()
    from protocol.process.run import leave

    leave(main(sys.argv[1:]))  # a look-up of a name that nobody answers may still be under way
