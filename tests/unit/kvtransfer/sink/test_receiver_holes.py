"""A source that leaves out bytes of a slot is caught before anything counts as landed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from kvtransfer.chunk import NO_BLOCK, PIECE, describe, pack
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.plan import Plan, plan
from kvtransfer.sink.fetch import Fetch, FetchStage, FetchStep
from kvtransfer.sink.receiver import Receiver, Receiving
from protocol.errors import TransferError
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.layout import KvLayout
from protocol.messages import Ticket

SMALL = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=4, dtype="float32")
LARGE = msgspec.structs.replace(SMALL, block_tokens=8)
NUM_TOKENS = 20
"""Three slots of two source blocks; the last one lacks its second."""


TICKET = Ticket(
    worker=WorkerId("liar"), epoch=Epoch(1), lease=LeaseId(1), address="", layout=SMALL,
    compat="", num_tokens=NUM_TOKENS,
)  # fmt: skip


@dataclass
class OneFetch:
    """A running fetch of slots twice as large as the source's blocks, and who knows it."""

    ticket: Ticket = TICKET
    plan: Plan | None = field(default_factory=lambda: plan(SMALL, LARGE))
    num_bytes: int = 0
    first_s: float = 0.0
    flow_s: float = 0.0

    def __post_init__(self) -> None:
        self.fetch = Fetch(
            fetch=FetchId(1),
            lease=LeaseId(1),
            pieces_S=describe(
                plan(SMALL, LARGE), indices_S=np.arange(3, dtype=np.uint32),
                slots_S=np.array([2, 0, 1], np.uint32), num_tokens=NUM_TOKENS,
            ),
        )  # fmt: skip
        self.fetch.start()

    def find(self, fetch: FetchId) -> Receiving | None:
        return self

    def follow(self, active: Receiving, steps: Sequence[FetchStep]) -> None:
        """The table itself is looked at."""

    def finished(self, active: Receiving, word: Finish) -> None:
        raise AssertionError("no note was sent")

    def quiet(self, block_ids: Sequence[int]) -> None:
        raise AssertionError("nothing was quarantined")

    def rejected(self, num_pieces: int, why: str) -> None:
        raise AssertionError("nothing arrived")

    def chunk(self, index: int, blocks: list[int]) -> Chunk:
        """One piece, right in everything but, perhaps, its blocks."""
        assert self.plan is not None
        blocks_PB = np.array([blocks], np.uint32)
        piece_P = np.zeros(1, PIECE)
        piece_P["index"], piece_P["slot"] = index, self.fetch.slots_S[index]
        piece_P["token_start"] = index * LARGE.block_tokens
        piece_P["token_count"] = min(8, NUM_TOKENS - index * 8)
        piece_P["num_bytes"] = self.plan.num_bytes(blocks_PB)
        return pack(fetch=FetchId(1), attempt=1, pieces_P=piece_P, blocks_PB=blocks_PB)


@pytest.fixture
def memory() -> Iterator[BlockMemory]:
    memory = BlockMemory.create(num_blocks=3, block_bytes=LARGE.block_bytes)
    yield memory
    memory.close()


def receiver(memory: BlockMemory, running: OneFetch) -> Receiver:
    return Receiver(memory, running, clock=lambda: 0.0)


@pytest.mark.parametrize(
    ("index", "blocks"),
    [
        (0, [NO_BLOCK, 1]),
        (0, [1, NO_BLOCK]),
        (0, [NO_BLOCK, NO_BLOCK]),
        (2, [1, 2]),  # a block after the lease's last
    ],
)
def test_a_piece_with_a_hole_fails_its_fetch(
    memory: BlockMemory, index: int, blocks: list[int]
) -> None:
    running = OneFetch()
    assert receiver(memory, running).begin_chunk(running.chunk(index, blocks)) is None
    assert running.fetch.stage is FetchStage.FAILED
    assert isinstance(running.fetch.error, TransferError)
    assert "source blocks are not those" in str(running.fetch.error)


def test_the_last_slot_may_lack_what_the_lease_lacks(memory: BlockMemory) -> None:
    running = OneFetch()
    landing = receiver(memory, running).begin_chunk(running.chunk(2, [1, NO_BLOCK]))
    assert landing is not None
    assert landing.num_bytes == SMALL.block_bytes
    assert running.fetch.num_writing == 1
