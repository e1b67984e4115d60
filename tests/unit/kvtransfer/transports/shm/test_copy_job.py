"""Both processes copy one chunk: the sink's end of such a stream, with the source played here."""

import select
import socket
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from kvtransfer.chunk import PIECE, Landing
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Chunk, Finish
from kvtransfer.native.copy import Span
from kvtransfer.native.library import kernels
from kvtransfer.plan import Ranges, whole_blocks
from kvtransfer.transports.announcing import Left, announcement
from kvtransfer.transports.framing import MessageOutbox
from kvtransfer.transports.shm.copy_job import MAX_PIECE_RANGES, CopyJob
from kvtransfer.transports.shm.sink import ShmSinkSetup, ShmSinkStream

NUM_BLOCKS, BLOCK_BYTES = 4, 512 << 10
_CURSOR, _NUM_DONE, _BATCH = 3, 4, 6
"""Where a copy job counts what is claimed, what is done, and how many are claimed at a time."""

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C kernels, so no copy jobs")


class SlowHelp(CopyJob):
    """A copy job of which the source has claimed one batch, and says that it left when told to."""

    source: socket.socket
    is_last_look = False

    @property
    def _counts(self) -> "NDArray[np.uint64]":
        return self.mapped[:64].view(np.uint64)

    def copy_pieces(self, number: int, *, target: Span, source: Span) -> int:
        self._counts[_CURSOR] += self._counts[_BATCH]
        return super().copy_pieces(number, target=target, source=source)

    def is_done_within(self, most_s: float) -> bool:
        """The source finishes just after the sink has looked."""
        done = super().is_done_within(most_s)
        if self.is_last_look and not done:
            self._counts[_NUM_DONE] += self._counts[_BATCH]
            outbox = MessageOutbox(self.source, announcement)
            outbox.put_message(Left(number=1))
            outbox.flush()
        return done


class Taker:
    """Lets one chunk in and remembers what ended."""

    def __init__(self, landing: Landing) -> None:
        self.landing = landing
        self.ended: list[Landing] = []

    def begin_chunk(self, chunk: Chunk) -> Landing:
        return self.landing

    def end_chunk(
        self, landing: Landing, sums_P: "NDArray[np.uint64] | None", *, broken: str = ""
    ) -> None:
        self.ended.append(landing)

    def finished(self, message: Finish) -> None: ...


def _landing(source: BlockMemory, target: BlockMemory) -> Landing:
    pieces_P = np.zeros(NUM_BLOCKS, PIECE)
    blocks_PB = np.arange(NUM_BLOCKS, dtype=np.uint32)[:, None]
    chunk = Chunk(fetch=1, attempt=1, pieces=pieces_P.tobytes(), blocks=blocks_PB.tobytes())
    return Landing(
        chunk=chunk, pieces_P=pieces_P, blocks_PB=blocks_PB,
        source=whole_blocks(blocks_PB[:, 0], source.block_bytes),
        target=whole_blocks(blocks_PB[:, 0], target.block_bytes),
    )  # fmt: skip


def test_a_piece_cut_into_more_ranges_than_a_copy_job_takes_is_not_shared() -> None:
    """80 layers of 8 heads, K and V, in blocks a quarter of the slot's: copied by one side."""

    def landing(num_ranges: int) -> Landing:
        ranges = Ranges(
            offsets_R=np.arange(num_ranges) * 256, sizes_R=np.full(num_ranges, 256),
            starts_P=np.array([0, num_ranges]),
        )  # fmt: skip
        return replace(_landing(pool, pool), source=ranges, target=ranges)

    pool = BlockMemory.create(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
    job = CopyJob.create()
    assert job is not None
    assert not job.fits(landing(MAX_PIECE_RANGES + 1))
    assert job.fits(landing(MAX_PIECE_RANGES))
    number = job.begin_chunk(landing(MAX_PIECE_RANGES))
    assert number is not None and job.copy_pieces(number, target=pool.span, source=pool.span) == 1
    job.close()
    pool.close()


def test_a_chunk_ends_although_the_source_leaves_it_between_two_looks() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    source, target = (
        BlockMemory.create(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES) for _ in range(2)
    )
    job = SlowHelp.create()
    assert isinstance(job, SlowHelp)
    job.source = theirs
    taker = Taker(_landing(source, target))
    stream = ShmSinkStream(ours, target, ShmSinkSetup(source=source, copy_job=job))
    outbox = MessageOutbox(theirs, announcement)
    outbox.put_message(taker.landing.chunk)
    outbox.flush()
    stream.receive(taker)
    assert taker.ended == []  # the source holds a batch of it

    job.is_last_look = True
    stream.receive(taker)
    while select.select([stream], [], [], 0)[0]:
        stream.receive(taker)
    assert taker.ended == [taker.landing]

    assert stream.close()
    theirs.close()
    target.close()
