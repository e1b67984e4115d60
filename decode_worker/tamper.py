"""A fault for tests: corrupts received KV blocks before they are verified."""

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


def corrupt_first(num_blocks: int) -> Callable[[memoryview], None] | None:
    """What `kvtransfer.sink.sink.Sink` takes as `tamper`: flips a byte in each of the first
    `num_blocks` blocks. None for none."""
    if not num_blocks:
        return None
    left = num_blocks

    def tamper(block: memoryview) -> None:
        nonlocal left
        if left:
            left -= 1
            block[0] ^= 0xFF
            log.warning("block corrupted on purpose", extra={"left": left})

    return tamper
