"""The source's end of a shared-memory stream: announces, and helps to copy when asked and idle."""

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.transports.announcing import AnnouncingStream, Left
from kvtransfer.transports.base import HelpCopy
from kvtransfer.transports.framing import MessageInbox
from kvtransfer.transports.shm.copy_job import CopyJob
from kvtransfer.transports.shm.messages import NAME, Help, ShmSetup, shm_to_source
from protocol.errors import LayoutMismatch, WireError

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 32 << 20
"""2 ms of copying by two, against 0.3 ms that a chunk costs. Of 16, 32 and 64 MiB: 13.9, 14.6 and
14.7 GB/s (512 MiB of 32 KiB blocks); at 64 MiB in all 9.9, 10.9 and 10.5."""
_LOAD: Final = Path("/proc/loadavg")


class ShmSourceStream(AnnouncingStream):
    transport = NAME
    chunk_bytes = CHUNK_BYTES

    def __init__(self, sock: socket.socket, memory: BlockMemory, setup: "Helper | None") -> None:
        """Reads the pool only in `receive`, with the helper that it is set up with and owns."""
        super().__init__(sock)
        self._memory = memory
        self._helper = setup
        self._inbox = MessageInbox(sock, shm_to_source)

    def receive(self) -> None:
        for message in self._inbox.receive():
            if self._helper is None or not isinstance(message, Help):
                raise WireError("help was asked for that was not offered")
            self._helper.copy_along(message.number, source=self._memory)
            self._outbox.put_message(Left(number=message.number))
        self._outbox.flush()

    def close(self) -> None:
        super().close()
        if self._helper is not None:
            self._helper.close()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Helper:
    """Copies along: owns the mapping of a sink's pool and of its copy job, and works on it.

    Helps with an idle core: a copy that takes one from the engine costs more than it saves.
    """

    copy_job: CopyJob
    target: BlockMemory
    when: HelpCopy

    @classmethod
    def open(cls, setup: ShmSetup, fds: list[int], *, when: HelpCopy) -> "Helper | None":
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
        return cls(copy_job=copy_job, target=target, when=when)

    def copy_along(self, number: int, *, source: BlockMemory) -> None:
        """Copy pieces of job `number` out of `source` if there is time for it."""
        if self.when == "always" or (self.when == "auto" and has_idle_core()):
            try:
                self.copy_job.copy_pieces(number, target=self.target.span, source=source.span)
            except ValueError as error:
                log.warning("a job was left alone", extra={"why": str(error)})

    def close(self) -> None:
        self.copy_job.close()
        self.target.close()


def has_idle_core() -> bool:
    """Whether fewer threads run or want to, us included, than there are cores."""
    try:
        running = int(_LOAD.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running <= len(os.sched_getaffinity(0))
