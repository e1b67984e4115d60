"""A source and a sink over small pools, for the tests of kvtransfer."""

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import ClassVar

from support import memory_plane
from support.device import FakeDeviceMemory, pool_for
from support.tampering import Tamper, tampered

from kvtransfer.endings import FetchEnd, LeaseEnd
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import FetchId
from kvtransfer.sink.events import SinkEvent
from kvtransfer.sink.sink import Sink
from kvtransfer.source.borrowing import AskedLoan
from kvtransfer.source.source import Source
from kvtransfer.transport_names import HOST_TRANSPORTS
from kvtransfer.transports.base import HelpCopy
from protocol.ids import LeaseId, WorkerId, new_epoch
from protocol.layout import KvLayout, Layout, compat_hash
from protocol.messages import Ticket

LAYOUT = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=4, dtype="float32")
COMPAT = compat_hash(LAYOUT, model_revision="tiny")
TRANSPORTS = (memory_plane.NAME, *HOST_TRANSPORTS)
NUM_BLOCKS = 64
NO_FETCH = FetchId(0)
WITHIN_S = 10.0
"""A bound on what a test waits for; far above what anything takes."""


def fill(memory: BlockMemory | FakeDeviceMemory, block_id: int, *, salt: int = 0) -> bytes:
    """Write bytes into a block that no other block or salt has."""
    word = (block_id * 1_000_003 + salt * 7_919 + 12_345).to_bytes(8, "little")
    content = (word * (memory.block_bytes // 8 + 1))[: memory.block_bytes]
    memory.block(block_id)[:] = content
    return content


@dataclass(frozen=True, slots=True)
class Slot:
    """A block wanted, and where it goes."""

    index: int
    block_id: int


@dataclass
class Lender:
    """A source whose blocks are all filled, and the lease ends it told."""

    on_device: ClassVar[bool] = False
    """Set: its pool is on a fake device, whatever moves it."""
    transports: Sequence[str] = TRANSPORTS
    lease_ttl_s: float = 6.0
    num_blocks: int = NUM_BLOCKS
    layout: Layout = LAYOUT
    compat: str = COMPAT
    host: str = "127.0.0.1"
    help_copy: HelpCopy = "auto"
    on_broken: Callable[[str], None] = print
    on_borrow: Callable[[Source, AskedLoan], None] | None = None
    """Who answers when a sink asks for a prefix."""
    ends: "queue.Queue[LeaseEnd]" = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.epoch = new_epoch()
        self.memory = pool_for(
            self.transports, num_blocks=self.num_blocks, block_bytes=self.layout.block_bytes,
            on_device=self.on_device,
        )  # fmt: skip
        for block in range(self.num_blocks):
            fill(self.memory, block)
        self.source = Source(
            memory=self.memory, layout=self.layout, worker=WorkerId("prefill-0"),
            epoch=self.epoch, compat=self.compat, on_lease_end=self.ends.put, host=self.host,
            lease_ttl_s=self.lease_ttl_s, transports=self.transports, on_broken=self.on_broken,
            help_copy=self.help_copy, on_borrow=self.on_borrow,
        )  # fmt: skip

    def lend(self, block_ids: Sequence[int], *, num_tokens: int | None = None) -> Ticket:
        num_tokens = num_tokens or len(block_ids) * self.layout.block_tokens
        return self.source.open_lease(block_ids=block_ids, num_tokens=num_tokens)

    def write_all(self, ticket: Ticket, *, note: bytes = b"note") -> None:
        self.source.publish(ticket.lease, ticket.num_tokens)
        self.source.finish(ticket.lease, note)

    def sent(self, lease: LeaseId) -> int:
        """Blocks sent so far under a lease that has not ended."""
        return self.source.num_sent(lease)

    def end_of(self, lease: LeaseId) -> LeaseEnd:
        end = self.ends.get(timeout=WITHIN_S)
        assert end.lease == lease
        return end

    def close(self) -> None:
        self.source.close()
        self.memory.close()


@dataclass
class Outcome:
    """A fetch and, once there, its end; a second end fails the test."""

    fetch: FetchId = NO_FETCH
    ends: list[FetchEnd] = field(default_factory=list)
    _there: threading.Event = field(default_factory=threading.Event)

    def tell(self, end: FetchEnd) -> None:
        self.ends.append(end)
        self._there.set()

    @property
    def end(self) -> FetchEnd:
        return self.end_within(WITHIN_S)

    def end_within(self, seconds: float) -> FetchEnd:
        assert self._there.wait(seconds), "the fetch did not end"
        (end,) = self.ends
        return end

    @property
    def ended(self) -> bool:
        return self._there.is_set()


@dataclass
class Borrower:
    """A sink over a pool of zeros."""

    on_device: ClassVar[bool] = False
    """Set: its pool is on a fake device, whatever moves it."""
    transports: Sequence[str] = ("shm", "tcp")
    allow_fallback: bool = True
    lease_ttl_s: float = 6.0
    num_blocks: int = NUM_BLOCKS
    layout: Layout = LAYOUT
    compat: str = COMPAT
    helped: bool = True
    tcp_lanes: int = 0
    tamper: Tamper | None = None
    """Sees each block after its bytes came and before they are verified."""
    on_broken: Callable[[str], None] = print
    events: list[SinkEvent] = field(default_factory=list)
    """What the sink told on the way."""
    quiet: list[int] = field(default_factory=list)
    """Blocks that were quarantined and are given back."""

    def __post_init__(self) -> None:
        self._faults = ExitStack()
        if self.tamper is not None:
            self._faults.enter_context(tampered(self.tamper))
        self.memory = pool_for(
            self.transports, num_blocks=self.num_blocks, block_bytes=self.layout.block_bytes,
            helped=self.helped, on_device=self.on_device,
        )  # fmt: skip
        self.sink = Sink(
            memory=self.memory, layout=self.layout, worker=WorkerId("decode-0"),
            compat=self.compat, transports=self.transports, allow_fallback=self.allow_fallback,
            lease_ttl_s=self.lease_ttl_s, on_broken=self.on_broken,
            on_event=self.events.append, tcp_lanes=self.tcp_lanes, on_quiet=self.quiet.extend,
        )  # fmt: skip

    def fetch(
        self, ticket: Ticket, slots: Sequence[Slot], *, deadline_s: float = WITHIN_S,
        heads: range | None = None,
    ) -> Outcome:  # fmt: skip
        outcome = Outcome()
        outcome.fetch = self.sink.fetch(
            ticket=ticket, indices=[slot.index for slot in slots],
            block_ids=[slot.block_id for slot in slots], deadline_s=deadline_s, on_end=outcome.tell,
            heads=heads,
        )  # fmt: skip
        return outcome

    def close(self) -> None:
        self.sink.close()
        self.memory.close()
        self._faults.close()
