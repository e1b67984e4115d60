"""Chunks into slots, with a clock that stands still between them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.pieces import chunk, pieces
from support.sink_means import sink_means
from support.transfer import LAYOUT
from xxhash import xxh3_64_intdigest

from kvtransfer.chunk import Landing
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.plan import plan
from kvtransfer.sink.events import Rejected, SinkEvent
from kvtransfer.sink.fetch import End, Fetch, FetchStep, SendCancel, SendFetch
from kvtransfer.sink.receiver import Receiver
from kvtransfer.sink.running_fetch import RunningFetch
from protocol.errors import WireError
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.messages import Ticket

NUM_TOKENS = 8
ZEROS = xxh3_64_intdigest(memoryview(bytes(LAYOUT.block_bytes)))
SLOTS = (2, 3)


TICKET = Ticket(
    worker=WorkerId("prefill-0"), epoch=Epoch(1), lease=LeaseId(1), address="", layout=LAYOUT,
    compat="", num_tokens=NUM_TOKENS,
)  # fmt: skip


class Rig:
    """A receiver of one fetch of two blocks, and everything it told."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.steps: list[FetchStep] = []
        self.freed: list[int] = []
        self.events: list[SinkEvent] = []
        self.memory = BlockMemory.create(num_blocks=4, block_bytes=LAYOUT.block_bytes)
        pieces_S = described(0, 1)
        fetch = Fetch(fetch_id=FetchId(1), lease_id=LeaseId(1), pieces_S=pieces_S)
        fetch.start()
        self.running = RunningFetch(
            fetch, TICKET, plan(LAYOUT, LAYOUT), print, started_s=0.0, deadline_s=9.0
        )
        means = sink_means(
            self.memory, LAYOUT, on_quiet=self.freed.extend, on_event=self.events.append,
            clock=lambda: self.now_s,
        )  # fmt: skip
        self.receiver = Receiver(means, source=TICKET.worker, find=self.find, follow=self.follow)

    def find(self, fetch_id: FetchId) -> RunningFetch | None:
        return self.running if fetch_id == 1 else None

    def follow(self, running: RunningFetch, steps: Sequence[FetchStep]) -> None:
        self.steps += steps
        if running.fetch.is_over and not running.fetch.ended:
            self.receiver.stop_writes(running.fetch.id)

    def begin(self, *indices: int, **changes: int) -> Landing | None:
        return self.receiver.begin_chunk(chunk(described(*indices, **changes), indices))


def described(*indices: int, **changes: int) -> NDArray[Any]:
    return pieces(
        indices, [SLOTS[i] for i in indices], block_tokens=LAYOUT.block_tokens,
        num_tokens=NUM_TOKENS, block_bytes=LAYOUT.block_bytes, **{"checksum": ZEROS, **changes},
    )  # fmt: skip


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.memory.close()


def sums(*numbers: int) -> NDArray[np.uint64]:
    return np.asarray(numbers, np.uint64)


def test_waits_between_chunks_are_no_time_in_which_bytes_flow(rig: Rig) -> None:
    for index, flow_s in enumerate((0.5, 0.25)):
        rig.now_s += 30.0
        landing = rig.begin(index)
        assert landing is not None
        rig.now_s += flow_s
        rig.receiver.end_chunk(landing, sums(ZEROS))
    assert rig.running.flow_s == 0.75
    assert rig.running.first_s == 130.5
    assert rig.running.num_bytes == 2 * LAYOUT.block_bytes


def test_a_landing_says_where_each_byte_comes_from_and_goes(rig: Rig) -> None:
    landing = rig.begin(0, 1)
    assert landing is not None
    assert landing.source.offsets_R.tolist() == [0, LAYOUT.block_bytes]
    assert landing.target.offsets_R.tolist() == [slot * LAYOUT.block_bytes for slot in SLOTS]
    assert landing.num_bytes == 2 * LAYOUT.block_bytes


def test_of_a_chunk_only_right_pieces_are_kept(rig: Rig) -> None:
    landing = rig.begin(0, 1)
    assert landing is not None
    rig.receiver.end_chunk(landing, sums(ZEROS, ZEROS ^ 1))
    assert rig.running.fetch.verified == (0,)
    assert rig.events == [Rejected(num_blocks=1, why="the checksum is another")]
    (step,) = rig.steps
    assert isinstance(step, SendFetch) and step.indices.tolist() == [1]


def test_a_chunk_of_an_unknown_fetch_or_with_its_slots_written_is_discarded(rig: Rig) -> None:
    assert rig.receiver.begin_chunk(chunk(pieces([], [], block_tokens=4, num_tokens=8,
                                                 block_bytes=1), [], fetch=7)) is None  # fmt: skip
    assert rig.begin(0) is not None
    assert rig.begin(0) is None and rig.begin(0, 1) is None
    assert rig.running.fetch.num_writing == 1 and not rig.steps


@pytest.mark.parametrize("pieces_cut", [0, 7])
def test_a_chunk_without_whole_pieces_ends_the_stream(rig: Rig, pieces_cut: int) -> None:
    honest = chunk(described(0), [0])
    cut = Chunk(fetch=1, attempt=1, pieces=honest.pieces[:pieces_cut], blocks=honest.blocks)
    with pytest.raises(WireError, match="chunk"):
        rig.receiver.begin_chunk(cut)


def test_a_chunk_that_contradicts_the_lease_fails_the_fetch(rig: Rig) -> None:
    assert rig.begin(1, slot=0) is None
    assert rig.running.fetch.ended and "described as" in str(rig.running.fetch.error)


def test_slots_of_a_stream_that_stopped_wait_for_the_next(rig: Rig) -> None:
    assert rig.begin(0, 1) is not None
    rig.receiver.stop_writes()
    assert rig.running.fetch.num_writing == 0 and not rig.running.fetch.is_over
    assert rig.begin(0) is not None


def test_a_fetch_that_ends_with_several_chunks_open_ends_once(rig: Rig) -> None:
    assert rig.begin(0) is not None and rig.begin(1) is not None
    rig.follow(rig.running, rig.running.fetch.cancel("client gone"))
    assert rig.steps == [SendCancel("client gone"), End()]
    assert rig.running.fetch.num_writing == 0


def test_a_writer_that_stops_after_the_end_frees_its_slots_for_their_owner(rig: Rig) -> None:
    landing = rig.begin(0, 1)
    assert landing is not None
    rig.running.fetch.cancel("client gone")
    rig.running.fetch.abandon()
    assert rig.freed == []
    rig.receiver.end_chunk(landing, None, broken="it was stopped")
    assert rig.freed == list(SLOTS)
    rig.receiver.end_chunk(landing, None)
    assert rig.freed == list(SLOTS)


def test_the_last_word_is_passed_on_for_a_running_fetch_only(rig: Rig) -> None:
    for fetch, note in ((7, b"another's"), (1, b"its own")):
        rig.receiver.finished(Finish(fetch=fetch, attempt=1, note=note, since_s=0.5))
    assert rig.running.fetch.note == b"its own"
    assert rig.running.written_s == rig.now_s - 0.5
