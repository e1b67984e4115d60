"""A source that copies along: it has mapped a sink's pool and copy job, and works on it.

Whether it helps depends on idle cores: a copy that takes a core from the engine costs more than it
saves.
"""

import logging
import os
from pathlib import Path
from typing import Final

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.transports.base import HelpCopy
from kvtransfer.transports.shm.copy_job import CopyJob
from kvtransfer.transports.shm.messages import ShmSetup
from protocol.errors import LayoutMismatch

log = logging.getLogger(__name__)

_LOAD: Final = Path("/proc/loadavg")


class Helper:
    """Owns the mapping of a sink's pool and of its copy job."""

    def __init__(
        self, copy_job: CopyJob, *, target: BlockMemory, source: BlockMemory, when: HelpCopy
    ) -> None:
        self._copy_job = copy_job
        self._target = target
        self._source = source
        self._when = when

    @classmethod
    def open(
        cls, setup: ShmSetup, fds: list[int], *, source: BlockMemory, when: HelpCopy
    ) -> "Helper | None":
        """Map what a sink offers; takes of `fds` those of its copy job and of its pool, which come
        last. None when they cannot be mapped: it copies alone."""
        copy_job = None
        try:
            copy_job = CopyJob.open(fds.pop())
            target = BlockMemory.open(
                fds.pop(), num_blocks=setup.num_blocks, block_bytes=setup.block_bytes,
                writable=True,
            )  # fmt: skip
        except LayoutMismatch as error:
            if copy_job is not None:
                copy_job.close()
            log.info("cannot help to copy", extra={"why": str(error)})
            return None
        return cls(copy_job, target=target, source=source, when=when)

    def copy_along(self, number: int) -> None:
        """Copy pieces of job `number` if there is time for it."""
        if self._when == "always" or (self._when == "auto" and has_idle_core()):
            try:
                self._copy_job.copy_pieces(
                    number, target=self._target.span, source=self._source.span
                )
            except ValueError as error:
                log.warning("a job was left alone", extra={"why": str(error)})

    def close(self) -> None:
        self._copy_job.close()
        self._target.close()


def has_idle_core() -> bool:
    """Whether fewer threads run or want to, us included, than there are cores."""
    try:
        running = int(_LOAD.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running <= len(os.sched_getaffinity(0))
