"""Chunks into slots, with a clock that stands still between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.pieces import chunk, pieces
from support.transfer import LAYOUT
from xxhash import xxh3_64_intdigest

from kvtransfer.chunk import Landing
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.plan import Plan, plan
from kvtransfer.sink.fetch import End, Fetch, FetchStep, SendCancel, SendFetch
from kvtransfer.sink.receiver import Receiver, Receiving
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


@dataclass
class Active:
    fetch: Fetch
    ticket: Ticket = TICKET
    plan: Plan | None = field(default_factory=lambda: plan(LAYOUT, LAYOUT))
    num_bytes: int = 0
    first_s: float = 0.0
    flow_s: float = 0.0


class Rig:
    """A receiver of one fetch of two blocks, and everything it told."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.steps: list[FetchStep] = []
        self.words: list[Finish] = []
        self.freed: list[int] = []
        self.refused: list[tuple[int, str]] = []
        self.memory = BlockMemory.create(num_blocks=4, block_bytes=LAYOUT.block_bytes)
        pieces_S = described(0, 1)
        fetch = Fetch(fetch=FetchId(1), lease=LeaseId(1), pieces_S=pieces_S)
        fetch.start()
        self.active = Active(fetch)
        self.receiver = Receiver(self.memory, self, clock=lambda: self.now_s)

    def find(self, fetch: FetchId) -> Receiving | None:
        return self.active if fetch == 1 else None

    def follow(self, active: Receiving, steps: Sequence[FetchStep]) -> None:
        self.steps += steps
        if active.fetch.over and not active.fetch.ended:
            self.receiver.stopped(active.fetch.fetch)

    def finished(self, active: Receiving, word: Finish) -> None:
        self.words.append(word)

    def quiet(self, block_ids: Sequence[int]) -> None:
        self.freed += block_ids

    def rejected(self, num_pieces: int, why: str) -> None:
        self.refused.append((num_pieces, why))

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
    assert rig.active.flow_s == 0.75
    assert rig.active.first_s == 130.5
    assert rig.active.num_bytes == 2 * LAYOUT.block_bytes


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
    assert rig.active.fetch.verified == (0,)
    assert rig.refused == [(1, "the checksum is another")]
    (step,) = rig.steps
    assert isinstance(step, SendFetch) and step.indices.tolist() == [1]


def test_a_chunk_of_an_unknown_fetch_or_with_its_slots_written_is_discarded(rig: Rig) -> None:
    assert rig.receiver.begin_chunk(chunk(pieces([], [], block_tokens=4, num_tokens=8,
                                                 block_bytes=1), [], fetch=7)) is None  # fmt: skip
    assert rig.begin(0) is not None
    assert rig.begin(0) is None and rig.begin(0, 1) is None
    assert rig.active.fetch.num_writing == 1 and not rig.steps


@pytest.mark.parametrize("pieces_cut", [0, 7])
def test_a_chunk_without_whole_pieces_ends_the_stream(rig: Rig, pieces_cut: int) -> None:
    honest = chunk(described(0), [0])
    cut = Chunk(fetch=1, attempt=1, pieces=honest.pieces[:pieces_cut], blocks=honest.blocks)
    with pytest.raises(WireError, match="chunk"):
        rig.receiver.begin_chunk(cut)


def test_a_chunk_that_contradicts_the_lease_fails_the_fetch(rig: Rig) -> None:
    assert rig.begin(1, slot=0) is None
    assert rig.active.fetch.ended and "described as" in str(rig.active.fetch.error)


def test_slots_of_a_stream_that_stopped_wait_for_the_next(rig: Rig) -> None:
    assert rig.begin(0, 1) is not None
    rig.receiver.stopped()
    assert rig.active.fetch.num_writing == 0 and not rig.active.fetch.over
    assert rig.begin(0) is not None


def test_a_fetch_that_ends_with_several_chunks_open_ends_once(rig: Rig) -> None:
    assert rig.begin(0) is not None and rig.begin(1) is not None
    rig.follow(rig.active, rig.active.fetch.cancel("client gone"))
    assert rig.steps == [SendCancel("client gone"), End()]
    assert rig.active.fetch.num_writing == 0


def test_a_writer_that_stops_after_the_end_frees_its_slots_for_their_owner(rig: Rig) -> None:
    landing = rig.begin(0, 1)
    assert landing is not None
    rig.active.fetch.cancel("client gone")
    rig.active.fetch.abandon()
    assert rig.freed == []
    rig.receiver.end_chunk(landing, None, broken="it was stopped")
    assert rig.freed == list(SLOTS)
    rig.receiver.end_chunk(landing, None)
    assert rig.freed == list(SLOTS)


def test_the_last_word_is_passed_on_for_a_running_fetch_only(rig: Rig) -> None:
    for fetch in (1, 7):
        rig.receiver.finished(Finish(fetch=fetch, attempt=1, note=b"", since_s=0.0))
    assert [word.fetch for word in rig.words] == [1]
