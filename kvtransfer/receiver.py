"""Where bytes become blocks: writes what arrives into its slot, and verifies it there.

Called by `kvtransfer.fetcher` and by pushing streams, on the sink's thread. A block counts only
when generation (where the source's memory can be read) and checksum match; every write is begun
and ended in the fetch's state table, so a slot never has two writers.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from kvtransfer.link import Link, LinkStage
from kvtransfer.messages import Descriptor, FetchId
from kvtransfer.pool import BlockMemory, checksum
from kvtransfer.session import Fetch, FetchStep
from protocol.errors import TransferError

log = logging.getLogger(__name__)

_TURN_BYTES: Final = 8 << 20
"""Most bytes copied before control messages are looked at again: about a millisecond."""


@dataclass(slots=True, eq=False)
class _Readable:
    """Blocks a source said may be read, in order."""

    link: Link
    fetch: FetchId
    attempt: int
    blocks: deque[Descriptor]


@dataclass(slots=True)
class _Flow:
    began_s: float = 0.0
    """When the bytes of the newest block began to come."""
    flow_s: float = 0.0


class Receiver:
    def __init__(
        self,
        memory: BlockMemory,
        *,
        find: Callable[[FetchId], Fetch | None],
        follow: Callable[[Fetch, Sequence[FetchStep]], None],
        tamper: Callable[[memoryview], None] | None,
        clock: Callable[[], float],
    ) -> None:
        """`find` gives a running fetch, `follow` carries out what its table answers."""
        self._memory = memory
        self._find = find
        self._follow = follow
        self._tamper = tamper
        self._clock = clock
        self._readable: deque[_Readable] = deque()
        self._flows: dict[FetchId, _Flow] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._readable)

    def may_read(
        self, link: Link, fetch: FetchId, *, attempt: int, blocks: Sequence[Descriptor]
    ) -> None:
        """A source says that these blocks of its memory may be read."""
        self._readable.append(_Readable(link, fetch, attempt, deque(blocks)))

    def copy(self) -> None:
        """Copy a turn's worth of the blocks that may be read."""
        budget = _TURN_BYTES
        while self._readable and budget > 0:
            readable = self._readable[0]
            fetch = self._find(readable.fetch)
            if not readable.blocks or fetch is None or readable.link.stage is not LinkStage.OPEN:
                self._readable.popleft()
            elif self._copy_block(readable, fetch, readable.blocks.popleft()):
                budget -= self._memory.block_bytes

    def begin_frame(
        self, fetch: FetchId, attempt: int, slot_block: int, block: Descriptor
    ) -> memoryview | None:
        """A pushing stream has bytes for a slot: where they go, or None to discard them."""
        found = self._find(fetch)
        into = None if found is None else self._begin_write(found, attempt, block)
        if found is None or into is None:
            return None
        if into != slot_block:
            self._follow(found, found.end_write(block.index, broken="it names another slot"))
            return None
        return self._memory.block(into)

    def end_frame(self, fetch: FetchId, block: Descriptor) -> None:
        """A slot's bytes are complete."""
        found = self._find(fetch)
        assert found is not None, "a frame was written for a fetch that is over"
        self._settle(found, block, broken="")

    def take_flow_s(self, fetch: FetchId) -> float:
        """Seconds in which bytes of this fetch flowed; it is over, and forgotten."""
        flow = self._flows.pop(fetch, None)
        return 0.0 if flow is None else flow.flow_s

    def _copy_block(self, readable: _Readable, fetch: Fetch, block: Descriptor) -> bool:
        """True when bytes were copied."""
        assert readable.link.stream is not None
        source = readable.link.stream.memory
        if source is None or block.block_id >= source.num_blocks:
            unknown = TransferError(f"the source named block {block.block_id}, which it has not")
            self._follow(fetch, fetch.fail(unknown))
            return False
        into = self._begin_write(fetch, readable.attempt, block)
        if into is None:
            return False
        before = source.generations[block.block_id]
        self._memory.copy_from(source, source_block=block.block_id, block=into)
        after = source.generations[block.block_id]
        stale = before != block.generation or after != block.generation
        self._settle(fetch, block, broken="the block has another generation" if stale else "")
        return True

    def _begin_write(self, fetch: Fetch, attempt: int, block: Descriptor) -> int | None:
        try:
            into = fetch.begin_write(attempt=attempt, block=block)
        except TransferError as error:
            self._follow(fetch, fetch.fail(error))
            return None
        if into is not None:
            if fetch.fetch not in self._flows:
                log.info("first block", extra={"lease": fetch.lease, "index": block.index})
            self._flows.setdefault(fetch.fetch, _Flow()).began_s = self._clock()
        return into

    def _settle(self, fetch: Fetch, block: Descriptor, *, broken: str) -> None:
        """Verify a slot's bytes, now that its writer has stopped."""
        if not broken:
            slot = self._memory.block(fetch.slot_block(block.index))
            if self._tamper is not None:
                self._tamper(slot)
            broken = "" if checksum(slot) == block.checksum else "the checksum is another"
        if broken:
            log.warning("block rejected", extra={"index": block.index, "why": broken})
        flow = self._flows[fetch.fetch]
        flow.flow_s += self._clock() - flow.began_s
        self._follow(fetch, fetch.end_write(block.index, broken=broken))
