"""`python -m decode_worker`: settings, cores and signals; then `decode_worker.wiring`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from decode_worker.settings import DecodeSettings
from protocol.ids import WorkerId
from protocol.process import run as process
from protocol.process.logs import configure_logging
from protocol.process.machine import check_device, claim_cores, host_name
from protocol.process.settings import load_or_exit
from worker.startup import open_doors


def main(argv: Sequence[str]) -> int:
    """The process's exit code: 0 after a drain, 1 for a failure, 2 for a wrong setting, 3 for a
    checkpoint that cannot be read."""
    settings = load_or_exit(DecodeSettings, argv, prog="decode_worker")
    worker = WorkerId(settings.worker or f"decode-{host_name()}-{os.getpid()}")
    configure_logging(process=worker, level=settings.log_level)

    async def serve(stop: process.Stop) -> int:
        async with open_doors(settings) as doors:
            module = await process.load(_import_worker, stop)
            exit_code: int = await module.serve(settings, worker, doors=doors, stop=stop)
            return exit_code

    def prepare() -> None:
        claim_cores(cores=settings.cores, threads=settings.threads)
        check_device(settings.device)

    return process.run(worker, serve, parent_pid=settings.parent_pid, prepare=prepare)


def _import_worker() -> ModuleType:
    """Brings torch, which takes seconds and sizes its thread pool by what `claim_cores` set."""
    return import_module("decode_worker.wiring")


if __name__ == "__main__":
    process.leave(main(sys.argv[1:]))
