"""`python -m prefill_worker`: settings, cores and signals; then `prefill_worker.worker`."""

import os
import sys
from collections.abc import Sequence

from prefill_worker.settings import PrefillSettings
from protocol import process
from protocol.ids import WorkerId
from protocol.machine import claim_cores, host_name
from protocol.settings import load_or_exit
from protocol.telemetry import configure_logging


def main(argv: Sequence[str]) -> int:
    """The process's exit code: 0 after a drain, 1 for a failure, 2 for a wrong setting, 3 for a
    checkpoint that cannot be read."""
    settings = load_or_exit(PrefillSettings, argv, prog="prefill_worker")
    worker = WorkerId(settings.worker or f"prefill-{host_name()}-{os.getpid()}")
    configure_logging(process=worker, level=settings.log_level)

    async def serve(stop: process.Stop) -> int:
        from prefill_worker.worker import serve as run  # brings torch, which reads the claim

        return await run(settings, worker, stop)

    return process.run(
        worker,
        serve,
        parent_pid=settings.parent_pid,
        prepare=lambda: claim_cores(cores=settings.cores, threads=settings.threads),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
