"""`baton up`: serves until told to stop.

SIGINT or SIGTERM drains; a second one hurries.
"""

import asyncio
from collections.abc import Sequence
from signal import Signals

from controlplane.local.cluster import running
from controlplane.local.display import Display
from controlplane.local.settings import UpFlags, UpSettings, load_up
from protocol.errors import BatonError
from protocol.process.run import Shutdown, ask_by_signals

SIGNALS = (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP)
"""That ask a cluster to stop."""


def up(argv: Sequence[str]) -> None:
    """Raises SettingsError or ChildFailed, whose messages are one line each."""
    flags = load_up(argv)
    try:
        asyncio.run(_serve(flags))
    except ExceptionGroup as group:
        raise first_failure(group) from None


def first_failure(group: ExceptionGroup) -> Exception:
    """A BatonError in `group`, or an OSError (of stdout, say), else the group: our bug."""
    for kind in (BatonError, OSError):
        found: Exception | None = group.subgroup(kind)
        while isinstance(found, ExceptionGroup):
            found = found.exceptions[0]
        if found is not None:
            return found
    return group


async def _serve(flags: UpFlags) -> None:
    display = Display(verbose=flags.settings.verbose)
    shutdown = Shutdown()
    try:
        display.begin(_headline(flags.settings))
        ask_by_signals(shutdown, *SIGNALS)
        async with running(flags, on_event=display.on_event, hurry=shutdown.hurry) as local:
            if await local.wait_ready(unless=shutdown.asked):
                display.ready(url=local.url, model=flags.settings.api_name)
                await shutdown.asked.wait()
            display.stop("stopping; a second signal hurries")
        display.say("stopped")
    finally:
        display.close()


def _headline(settings: UpSettings) -> str:
    pools = f"{settings.prefill} prefill + {settings.decode} decode"
    if settings.prefill == 0:
        pools = f"{settings.decode} decode, prefilling their own requests"
    redis = "embedded Redis" if not settings.redis else "the Redis given"
    dtype = "" if settings.dtype == "auto" else f" in {settings.dtype}"
    processes = settings.router_processes
    router = "1 router" if processes == 1 else f"1 router of {processes} processes"
    return f"Baton starts {settings.api_name}{dtype}: {pools}, {router}, {redis}"
