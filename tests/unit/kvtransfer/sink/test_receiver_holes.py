"""A source that leaves out bytes of a slot is caught before anything counts as landed."""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pytest
from support.sink_means import sink_means

from kvtransfer.chunk import PIECE, describe_pieces, pack_chunk
from kvtransfer.endings import FetchEnd
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Chunk, FetchId
from kvtransfer.plan import NO_BLOCK, plan
from kvtransfer.sink.events import SinkEvent
from kvtransfer.sink.fetch import Fetch, FetchStage, FetchStep
from kvtransfer.sink.receiver import Receiver
from kvtransfer.sink.running_fetch import RunningFetch
from protocol.errors import TransferError
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.layout import KvLayout
from protocol.messages import Ticket

SMALL = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=4, dtype="float32")
LARGE = msgspec.structs.replace(SMALL, block_tokens=8)
PLAN = plan(SMALL, LARGE)
NUM_TOKENS = 20
"""Three slots of two source blocks; the last one lacks its second."""


TICKET = Ticket(
    worker=WorkerId("liar"), epoch=Epoch(1), lease=LeaseId(1), address="", layout=SMALL,
    compat="", num_tokens=NUM_TOKENS,
)  # fmt: skip


class OneFetch:
    """A running fetch of slots twice as large as the source's blocks, and its receiver."""

    def __init__(self, memory: BlockMemory) -> None:
        self.fetch = Fetch(
            fetch_id=FetchId(1),
            lease_id=LeaseId(1),
            pieces_S=describe_pieces(
                PLAN, indices_S=np.arange(3, dtype=np.uint32),
                slots_S=np.array([2, 0, 1], np.uint32), num_tokens=NUM_TOKENS,
            ),
        )  # fmt: skip
        self.fetch.start()
        running = RunningFetch(self.fetch, TICKET, PLAN, self.end, started_s=0.0, deadline_s=9.0)
        means = sink_means(memory, LARGE, on_event=self.hear, on_quiet=self.take_back)
        self.receiver = Receiver(
            means, source=TICKET.worker, find=lambda fetch_id: running, follow=self.follow
        )

    def end(self, end: FetchEnd) -> None:
        raise AssertionError("nobody ended it")

    def follow(self, running: RunningFetch, steps: Sequence[FetchStep]) -> None:
        """The table itself is looked at."""

    def take_back(self, block_ids: Sequence[int]) -> None:
        raise AssertionError("nothing was quarantined")

    def hear(self, event: SinkEvent) -> None:
        raise AssertionError("nothing arrived")

    def chunk(self, index: int, blocks: list[int]) -> Chunk:
        """One piece, right in everything but, perhaps, its blocks."""
        blocks_PB = np.array([blocks], np.uint32)
        piece_P = np.zeros(1, PIECE)
        piece_P["index"], piece_P["slot"] = index, self.fetch.slots_S[index]
        piece_P["token_start"] = index * LARGE.block_tokens
        piece_P["token_count"] = min(8, NUM_TOKENS - index * 8)
        piece_P["num_bytes"] = PLAN.num_bytes(blocks_PB)
        return pack_chunk(fetch=FetchId(1), attempt=1, pieces_P=piece_P, blocks_PB=blocks_PB)


@pytest.fixture
def memory() -> Iterator[BlockMemory]:
    memory = BlockMemory.create(num_blocks=3, block_bytes=LARGE.block_bytes)
    yield memory
    memory.close()


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
    running = OneFetch(memory)
    assert running.receiver.begin_chunk(running.chunk(index, blocks)) is None
    assert running.fetch.stage is FetchStage.FAILED
    assert isinstance(running.fetch.error, TransferError)
    assert "source blocks are not those" in str(running.fetch.error)


def test_the_last_slot_may_lack_what_the_lease_lacks(memory: BlockMemory) -> None:
    running = OneFetch(memory)
    landing = running.receiver.begin_chunk(running.chunk(2, [1, NO_BLOCK]))
    assert landing is not None
    assert landing.num_bytes == SMALL.block_bytes
    assert running.fetch.num_writing == 1
