"""A worker's process: settings, logs, cores and signals, then `worker.serving`."""

import os
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from protocol.ids import WorkerId
from protocol.messages import Role
from protocol.presence import ComingPresence
from protocol.process.logs import configure_logging
from protocol.process.machine import check_device, claim_cores, host_name
from protocol.process.model_folder import expected_name
from protocol.process.run import Shutdown, load, run
from protocol.process.settings import WorkerSettings, load_or_exit
from protocol.store.workers import ComingWorker
from worker.startup import open_endpoints


def main(role: Role, settings: type[WorkerSettings], argv: Sequence[str], *, wiring: str) -> int:
    """The process's exit code: 0 after a drain, 1 for a failure, 2 for a wrong setting, 3 for a
    checkpoint that cannot be read. `wiring` is the module whose `open_transfers` the role adds."""
    given = load_or_exit(settings, argv, prog=f"{role}_worker")
    worker = WorkerId(given.worker or f"{role}-{host_name()}-{os.getpid()}")
    configure_logging(process=worker, level=given.log_level)

    def load_modules() -> tuple[ModuleType, ModuleType]:
        """Brings torch, which takes seconds and sizes its thread pool by what was claimed."""
        return import_module("worker.serving"), import_module(wiring)

    async def serve(shutdown: Shutdown) -> int:
        model = given.served_name or expected_name(given.model)
        here = ComingWorker(worker=worker, role=role, model=model)
        async with (
            open_endpoints(given) as endpoints,
            ComingPresence(endpoints.store, here) as coming,
        ):
            endpoints.phases.enter("modules")
            serving, role_parts = await load(load_modules, shutdown)
            exit_code: int = await serving.serve(
                role,
                given,
                worker,
                open_transfers=role_parts.open_transfers,
                endpoints=endpoints,
                coming=coming,
                shutdown=shutdown,
            )
            return exit_code

    def prepare() -> None:
        claim_cores(cores=given.cores, threads=given.threads)
        check_device(given.device)

    return run(worker, serve, parent_pid=given.parent_pid, prepare=prepare)
