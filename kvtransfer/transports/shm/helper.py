"""A source that copies along: it has mapped a sink's pool and board, and works on their jobs.

Whether it helps depends on idle cores: a copy that takes a core from the engine costs more than it
saves.
"""

import logging
import os
from pathlib import Path
from typing import Final, Literal

from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import HelpOffer
from kvtransfer.transports.shm.copy_job import Board
from protocol.errors import LayoutMismatch

log = logging.getLogger(__name__)

HelpCopy = Literal["auto", "always", "never"]
"""Auto: when the machine has fewer runnable threads than cores."""
_LOAD: Final = Path("/proc/loadavg")


class Helper:
    """Owns the mapping of a sink's pool and of its board."""

    def __init__(
        self, *, board: Board, target: BlockMemory, source: BlockMemory, when: HelpCopy
    ) -> None:
        self._board = board
        self._target = target
        self._source = source
        self._when = when

    @classmethod
    def open(
        cls, offer: HelpOffer, fds: list[int], *, source: BlockMemory, when: HelpCopy
    ) -> "Helper | None":
        """Map what a sink offers; takes `fds`. None when it cannot be mapped: it copies alone."""
        pool_fd, board_fd = fds
        fds.clear()
        try:
            board = Board.open(board_fd)
        except LayoutMismatch as error:
            os.close(pool_fd)
            log.info("cannot help to copy", extra={"why": str(error)})
            return None
        try:
            target = BlockMemory.open(
                pool_fd, num_blocks=offer.num_blocks, block_bytes=offer.block_bytes, writable=True
            )
        except LayoutMismatch as error:
            board.close()
            log.info("cannot help to copy", extra={"why": str(error)})
            return None
        return cls(board=board, target=target, source=source, when=when)

    def help(self, number: int) -> None:
        """Work on a job if there is time for it."""
        if self._when == "always" or (self._when == "auto" and has_idle_core()):
            try:
                self._board.work(number, target=self._target.span, source=self._source.span)
            except ValueError as error:
                log.warning("a job was left alone", extra={"why": str(error)})

    def close(self) -> None:
        self._board.close()
        self._target.close()


def has_idle_core() -> bool:
    """Whether fewer threads run or want to, us included, than there are cores."""
    try:
        running = int(_LOAD.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running <= len(os.sched_getaffinity(0))
