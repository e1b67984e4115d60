"""Descriptions of pieces between equal layouts, for tests of the state tables and of liars."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import PIECE
from kvtransfer.messages import Chunk


def pieces(
    indices: Sequence[int], slots: Sequence[int], *, block_tokens: int, num_tokens: int,
    block_bytes: int, **changes: int,
) -> NDArray[Any]:  # fmt: skip
    """What an honest source would say of these, but for the changes."""
    pieces_P = np.zeros(len(indices), PIECE)
    index_P = np.asarray(indices, np.int64)
    pieces_P["index"], pieces_P["slot"] = index_P, slots
    pieces_P["token_start"] = index_P * block_tokens
    pieces_P["token_count"] = np.minimum(block_tokens, num_tokens - index_P * block_tokens)
    pieces_P["num_bytes"] = block_bytes
    for name, value in changes.items():
        pieces_P[name] = value
    return pieces_P


def chunk(
    pieces_P: NDArray[Any], blocks: Sequence[int], *, fetch: int = 1, attempt: int = 1
) -> Chunk:
    return Chunk(
        fetch=fetch, attempt=attempt, pieces=pieces_P.tobytes(),
        blocks=np.asarray(blocks, np.uint32).tobytes(),
    )  # fmt: skip


def u4s(*numbers: int) -> bytes:
    """Packed u4[]."""
    return np.asarray(numbers, np.uint32).tobytes()
