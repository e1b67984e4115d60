"""How a chunk is described, packed and checked."""

import msgspec
import numpy as np
import pytest

from kvtransfer.chunk import (
    MAX_CHUNK_PIECES,
    PIECE,
    describe_pieces,
    known_words,
    pack_chunk,
    unpack_chunk,
)
from kvtransfer.messages import Chunk, FetchId
from kvtransfer.plan import NO_BLOCK, plan
from protocol.errors import WireError
from protocol.layout import KvLayout

SMALL = KvLayout(num_layers=2, num_kv_heads=2, head_dim=8, block_tokens=4, dtype="float32")
LARGE = msgspec.structs.replace(SMALL, block_tokens=8)


def test_the_last_slot_of_a_lease_has_the_tokens_that_are_left() -> None:
    pieces_S = describe_pieces(
        plan(SMALL, SMALL), indices_S=np.array([0, 2], np.uint32),
        slots_S=np.array([7, 5], np.uint32), num_tokens=10,
    )  # fmt: skip
    assert pieces_S["slot"].tolist() == [7, 5]
    assert pieces_S["token_start"].tolist() == [0, 8]
    assert pieces_S["token_count"].tolist() == [4, 2]
    assert pieces_S["num_bytes"].tolist() == [SMALL.block_bytes] * 2


def test_a_slot_that_lacks_a_source_block_has_the_bytes_of_the_others() -> None:
    pieces_S = describe_pieces(
        plan(SMALL, LARGE), indices_S=np.array([0, 1], np.uint32),
        slots_S=np.array([0, 1], np.uint32), num_tokens=12,
    )  # fmt: skip
    assert pieces_S["num_bytes"].tolist() == [2 * SMALL.block_bytes, SMALL.block_bytes]


def test_generations_and_checksums_are_not_known_before_the_bytes_are() -> None:
    pieces_P = np.zeros(2, PIECE)
    pieces_P["generation"], pieces_P["checksum"] = (1, 2), (3, 4)
    assert (known_words(pieces_P)[0] == known_words(pieces_P)[1]).all()
    pieces_P["num_bytes"] = (64, 1 << 40)
    assert (known_words(pieces_P)[0] != known_words(pieces_P)[1]).any()


def test_what_is_packed_comes_out_again() -> None:
    pieces_P = np.zeros(2, PIECE)
    pieces_P["index"], pieces_P["checksum"] = (0, 1), (1 << 63, 7)
    blocks_PB = np.array([[3, 4], [5, NO_BLOCK]], np.uint32)
    chunk = pack_chunk(fetch=FetchId(9), attempt=2, pieces_P=pieces_P, blocks_PB=blocks_PB)
    assert (chunk.fetch, chunk.attempt) == (9, 2)
    again_P, again_PB = unpack_chunk(chunk, blocks_per_slot=2)
    assert (again_P == pieces_P).all() and (again_PB == blocks_PB).all()


@pytest.mark.parametrize(
    ("num_bytes", "num_blocks", "why"),
    [
        (0, 0, "0 bytes of pieces"),
        (PIECE.itemsize - 1, 1, "bytes of pieces"),
        (PIECE.itemsize * (MAX_CHUNK_PIECES + 1), MAX_CHUNK_PIECES + 1, "bytes of pieces"),
        (PIECE.itemsize, 2, "1 pieces come with 8 bytes of blocks"),
    ],
)
def test_what_cannot_be_a_chunk_is_refused(num_bytes: int, num_blocks: int, why: str) -> None:
    chunk = Chunk(fetch=1, attempt=1, pieces=bytes(num_bytes), blocks=bytes(4 * num_blocks))
    with pytest.raises(WireError, match=why):
        unpack_chunk(chunk, blocks_per_slot=1)
