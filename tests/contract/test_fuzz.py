"""Anything said to either end is refused or ends something: no crash, no hang, no growth.

A bounded part of what `make fuzz` goes on with; the seed is in the test.
"""

import random
from collections.abc import Callable
from contextlib import closing

import msgspec
import numpy as np
import pytest
from support.fuzz import Fuzz
from support.mutation import Mutator
from support.nursery import Nursery
from support.transfer import COMPAT, LAYOUT

from kvtransfer.chunk import MAX_CHUNK_PIECES, PIECE, unpack_chunk
from kvtransfer.messages import (
    CONTROL_VERSION,
    Borrow,
    Cancel,
    Chunk,
    EndedLease,
    FetchBlocks,
    FetchFailed,
    Finish,
    Lent,
    Open,
    Opened,
    PlaneAddress,
    Refused,
    Release,
    Renew,
    Renewed,
    StreamHello,
    StreamWelcome,
    stream_hello,
    stream_welcome,
    to_sink,
    to_source,
)
from kvtransfer.transports.announcing import announcement
from kvtransfer.transports.shm.messages import Help, ShmSetup, shm_setup, shm_to_source
from protocol.errors import WireError
from protocol.ids import Epoch, LeaseId, WorkerId

LEASE, EPOCH = LeaseId(77), Epoch(5)
PIECES = np.zeros(3, PIECE)
CHUNK = Chunk(fetch=1, attempt=1, pieces=PIECES.tobytes(), blocks=bytes(12))
FINISH = Finish(fetch=1, attempt=1, note=b"note", since_s=0.5)

TO_SOURCE = (
    Open(session=1, worker=WorkerId("w"), epoch=EPOCH),
    FetchBlocks(
        fetch=1, attempt=1, lease=LEASE, compat=COMPAT, layout=LAYOUT, indices=bytes(12),
        slots=bytes(12),
    ),
    Renew(leases=(LEASE,), remaining_s=6.0),
    Release(lease=LEASE),
    Cancel(lease=LEASE, reason="client gone"),
    Borrow(fetch=1, compat=COMPAT, seed=bytes(16), token_ids=bytes(64)),
)  # fmt: skip
TO_SINK = (
    Opened(epoch=EPOCH, planes=(PlaneAddress("shm", "name"), PlaneAddress("tcp", "127.0.0.1:1"))),
    Refused(code="epoch", reason="restarted"),
    FetchFailed(fetch=1, attempt=1, code="failed", reason="preempted"),
    Renewed(gone=(EndedLease(lease=LEASE, code="closed", reason="over"),)),
    Lent(fetch=1, lease=LEASE, num_tokens=16, last=bytes(16)),
)
HELLO = StreamHello(version=CONTROL_VERSION, session=1, epoch=EPOCH)
WELCOME = StreamWelcome(version=CONTROL_VERSION, epoch=EPOCH, num_blocks=4, block_bytes=64)
VERSION = bytes([CONTROL_VERSION])
WORDS: tuple[tuple[bytes, Callable[[bytes], object]], ...] = (
    *((to_source.encode(word)[1:], lambda b: to_source.decode(VERSION + b)) for word in TO_SOURCE),
    *((to_sink.encode(word)[1:], lambda b: to_sink.decode(VERSION + b)) for word in TO_SINK),
    *((announcement.encode(word), announcement.decode) for word in (CHUNK, FINISH)),
    (shm_to_source.encode(Help(number=3)), shm_to_source.decode),
    (shm_setup.encode(ShmSetup(num_blocks=4, block_bytes=64)), shm_setup.decode),
    (stream_hello.encode(HELLO), stream_hello.decode),
    (stream_welcome.encode(WELCOME), stream_welcome.decode),
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(WORDS)))
def test_a_spoilt_word_is_refused_or_read_as_its_type(number: int) -> None:
    word, read = WORDS[number]
    mutator = Mutator(random.Random(f"word {number}"))
    assert isinstance(read(word), msgspec.Struct)
    refused = 0
    for _ in range(2_000):
        try:
            assert isinstance(read(mutator.word(word)), msgspec.Struct)
        except WireError:
            refused += 1
    assert refused, "nothing was ever refused"


def test_a_spoilt_chunk_is_refused_or_has_as_many_pieces_as_it_says() -> None:
    mutator = Mutator(random.Random("chunk"))
    for _ in range(2_000):
        try:
            chunk = announcement.decode(mutator.word(announcement.encode(CHUNK)))
            assert isinstance(chunk, Chunk | Finish | msgspec.Struct)
            if isinstance(chunk, Chunk):
                pieces_P, blocks_PB = unpack_chunk(chunk, blocks_per_slot=1)
                assert 0 < len(pieces_P) == len(blocks_PB) <= MAX_CHUNK_PIECES
        except WireError:
            continue


@pytest.mark.system
def test_a_copy_job_scribbled_over_by_its_other_side_harms_nobody() -> None:
    """In a process of its own: what C does wrong would end it without a word."""
    with closing(Nursery()) as nursery, closing(nursery.child("scribbler", "job")) as child:
        assert child.hear() == "unharmed"


@pytest.mark.system
@pytest.mark.slow
def test_spoilt_traffic_and_strangers_end_fetches_and_leave_nothing() -> None:
    with closing(Fuzz("tests")) as fuzz:
        for number in range(5):
            fuzz.batch(number)
        fuzz.check()
        assert fuzz.endings["Landed"] and fuzz.endings["Lost"]
