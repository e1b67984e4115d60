"""The end that lends blocks in a measurement: a real source over a small pool of test bytes.

Used in a thread of the process that serves a peer, and as a process of its own
(`python -m controlplane.doctor.lender`) when one machine measures itself: that prints its offers
as a line of JSON and lends until its standard input ends.
"""

import sys
from collections.abc import Sequence
from select import select
from types import TracebackType
from typing import Final

import msgspec
import numpy as np

from controlplane.doctor.trial import (
    BULK_BLOCKS,
    COMPAT,
    LAYOUT,
    NUM_BULK,
    NUM_SINGLE,
    WARM_BLOCKS,
    Offer,
)
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.source.source import Source
from protocol.ids import WorkerId, new_epoch
from protocol.messages import Ticket
from protocol.process.machine import free_memory_bytes

LEND_S: Final = 30.0
"""Every lease ends by then, and with them this process."""


class Lender:
    """Lends until closed. Raises TransferError when it cannot listen."""

    def __init__(self, *, host: str, transports: Sequence[str]) -> None:
        self._memory = BlockMemory.create(num_blocks=pool_blocks(), block_bytes=LAYOUT.block_bytes)
        np.frombuffer(self._memory.blocks, dtype=np.uint8)[:] = 0x5A  # take the pages now
        self._transports = transports
        self._source = Source(
            memory=self._memory,
            layout=LAYOUT,
            worker=WorkerId("doctor"),
            epoch=new_epoch(),
            compat=COMPAT,
            on_lease_end=lambda end: None,
            host=host,
            lease_ttl_s=LEND_S,
            transports=transports,
        )

    def offers(self) -> tuple[Offer, ...]:
        """One for each transport, to be fetched within LEND_S."""
        return tuple(self._offer(transport) for transport in self._transports)

    def close(self) -> None:
        self._source.close()
        self._memory.close()

    def __enter__(self) -> "Lender":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _offer(self, transport: str) -> Offer:
        return Offer(
            transport=transport,
            warm=self._lend(WARM_BLOCKS),
            bulk=tuple(self._lend(self._memory.num_blocks) for _ in range(NUM_BULK)),
            single=tuple(self._lend(1) for _ in range(NUM_SINGLE)),
        )

    def _lend(self, num_blocks: int) -> Ticket:
        num_tokens = num_blocks * LAYOUT.block_tokens
        ticket = self._source.open_lease(block_ids=range(num_blocks), num_tokens=num_tokens)
        self._source.finish(ticket.lease, b"doctor")
        return ticket


def pool_blocks() -> int:
    """BULK_BLOCKS, fewer where memory is short: an eighth of what is free."""
    return max(WARM_BLOCKS, min(BULK_BLOCKS, free_memory_bytes() // 8 // LAYOUT.block_bytes))


def main(transports: Sequence[str]) -> None:
    with Lender(host="127.0.0.1", transports=transports) as lender:
        sys.stdout.buffer.write(msgspec.json.encode(lender.offers()) + b"\n")
        sys.stdout.buffer.flush()
        select([sys.stdin], [], [], LEND_S)


if __name__ == "__main__":
    main(sys.argv[1:])
