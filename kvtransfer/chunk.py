"""Pieces and chunks: what travels, described by its source and checked by its fetcher.

A piece is what one source provides of one slot; a chunk is pieces of one fetch that travel
together. Packed as arrays, so a chunk of thousands costs no Python per piece.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.messages import Chunk, FetchId
from kvtransfer.plan import Plan, Ranges
from protocol.errors import WireError

PIECE: Final = np.dtype(
    [
        ("index", "<u4"), ("slot", "<u4"), ("token_start", "<u4"), ("token_count", "<u4"),
        ("num_bytes", "<u8"), ("generation", "<u8"), ("checksum", "<u8"),
    ]
)  # fmt: skip
"""index: the slot, counted from token 0 of the lease in the fetcher's blocks, those of all KV
groups (`protocol.layout`). slot: its block in the fetcher's pool. generation: the sum of those of
the source blocks it is read from; each only grows, so an equal sum means equal ones. checksum: of
its bytes, in the order of the slot."""

_WORDS: Final = PIECE.itemsize // 4
_KNOWN_WORDS: Final = 6
"""Of each piece, the words up to `num_bytes`: what both ends know before it is written."""
MAX_CHUNK_PIECES: Final = 4_096
"""Their descriptions fit one control frame; 32 KiB each make 128 MiB."""


@dataclass(frozen=True, slots=True, eq=False)
class Landing:
    """A chunk that may be written, from the source's pool to ours, in the same sizes and starts."""

    chunk: Chunk
    pieces_P: NDArray[Any]  # PIECE
    blocks_PB: NDArray[np.uint32]
    source: Ranges
    target: Ranges

    @property
    def fetch(self) -> FetchId:
        return FetchId(self.chunk.fetch)

    @property
    def num_bytes(self) -> int:
        return int(self.target.sizes_R.sum())


def describe_pieces(
    plan: Plan, *, indices_S: NDArray[np.uint32], slots_S: NDArray[np.uint32], num_tokens: int
) -> NDArray[Any]:
    """The pieces of all slots of a fetch, without generations and checksums, `[slot]`."""
    block_tokens = plan.target_layout.block_tokens
    pieces_S = np.zeros(len(indices_S), PIECE)
    start_S = indices_S.astype(np.int64) // plan.target_layout.num_groups * block_tokens
    pieces_S["index"], pieces_S["slot"], pieces_S["token_start"] = indices_S, slots_S, start_S
    pieces_S["token_count"] = np.minimum(block_tokens, num_tokens - start_S)
    pieces_S["num_bytes"] = plan.piece_bytes
    if plan.blocks_per_slot > 1:
        lease = np.zeros(plan.source_layout.num_blocks(num_tokens), np.uint32)
        pieces_S["num_bytes"] = plan.num_bytes(plan.source_blocks(indices_S, lease))
    return pieces_S


def known_words(pieces_P: NDArray[Any]) -> NDArray[np.uint32]:
    """What of each piece both ends know before it is written, `[piece, word]`."""
    words: NDArray[np.uint32] = pieces_P.view("<u4").reshape(-1, _WORDS)[:, :_KNOWN_WORDS]
    return words


def num_in_next_chunk(
    num_pieces: int, *, piece_bytes: int, most_bytes: int, most_pieces: int
) -> int:
    """Of so many equal pieces that are ready, how many to send now; 0 of none. Few large chunks,
    because each costs a message, a turn and an event on both sides, yet none so large that it holds
    up the others.

    Never more than `most_pieces`, nor more than `most_bytes` unless it is a single piece. Asked
    again for the rest it shares all of them out evenly over as few chunks as can be, so that no
    small one trails: a chunk is small only when no more is ready, or a bound is.
    """
    fitting = max(1, min(most_pieces, most_bytes // piece_bytes))
    num_chunks = -(-num_pieces // fitting)
    return -(-num_pieces // num_chunks) if num_chunks else 0


def pack_chunk(
    *, fetch: FetchId, attempt: int, pieces_P: NDArray[Any], blocks_PB: NDArray[np.uint32]
) -> Chunk:
    return Chunk(
        fetch=fetch, attempt=attempt, pieces=pieces_P.tobytes(), blocks=blocks_PB.tobytes()
    )


def unpack_pieces(chunk: Chunk) -> NDArray[Any]:
    """Its pieces `[P]`. Raises WireError."""
    num_pieces, rest = divmod(len(chunk.pieces), PIECE.itemsize)
    if rest or not 0 < num_pieces <= MAX_CHUNK_PIECES:
        raise WireError(f"a chunk of {len(chunk.pieces)} bytes of pieces")
    return np.frombuffer(chunk.pieces, PIECE)


def unpack_chunk(chunk: Chunk, *, blocks_per_slot: int) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """Its pieces `[P]` and their source blocks `[P, blocks_per_slot]`. Raises WireError."""
    pieces_P = unpack_pieces(chunk)
    num_pieces = len(pieces_P)
    if len(chunk.blocks) != 4 * num_pieces * blocks_per_slot:
        raise WireError(f"{num_pieces} pieces come with {len(chunk.blocks)} bytes of blocks")
    blocks_PB = np.frombuffer(chunk.blocks, "<u4").reshape(num_pieces, blocks_per_slot)
    return pieces_P, blocks_PB
