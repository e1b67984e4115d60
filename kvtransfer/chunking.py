"""Which pieces that are ready travel together.

A pure decision, called by a source whenever blocks were written: few large chunks, because each
costs a word, a turn and a notice on both sides, yet none so large that it holds up the others.
"""

# Shapes: P pieces in the order they are sent.

import numpy as np

from kvtransfer.plan import Int64s

LEAST_BYTES = 1 << 20
"""Published for EFA: 365 of 400 GB/s with 1 MiB blocks, 97 with 64 KiB ones."""


def cut(
    bytes_P: Int64s,
    *,
    most_bytes: int,
    most_pieces: int,
    more: bool,
    least_bytes: int = LEAST_BYTES,
) -> list[range]:
    """The chunks to send now, as positions in `bytes_P`, one after another from 0.

    None has more than `most_pieces`, or more than `most_bytes` unless it is a single piece. One
    below `least_bytes` cannot be joined with a neighbour within these bounds. With `more` pieces
    to come a rest that is too small waits for them; without, the chunks are all of P. Pieces that
    need several chunks are shared out evenly, so that none trails. Raises ValueError for bounds
    that leave nothing between them.
    """
    if not 1 <= least_bytes <= most_bytes or most_pieces < 1:
        raise ValueError(f"bounds: {least_bytes=} to {most_bytes=}, {most_pieces=}")
    ends_P = np.cumsum(bytes_P)
    chunks: list[range] = []
    start, sent_bytes = 0, 0
    while start < len(bytes_P):
        left_bytes = int(ends_P[-1]) - sent_bytes
        if more and left_bytes < least_bytes:
            break
        num_chunks = max(-(-left_bytes // most_bytes), -(-(len(bytes_P) - start) // most_pieces))
        goal_bytes = max(-(-left_bytes // num_chunks), least_bytes)
        enough = int(np.searchsorted(ends_P, sent_bytes + goal_bytes)) + 1
        fitting = int(np.searchsorted(ends_P, sent_bytes + most_bytes, side="right"))
        end = max(start + 1, min(enough, fitting, start + most_pieces))
        chunks.append(range(start, end))
        start, sent_bytes = end, int(ends_P[end - 1])
    return chunks
