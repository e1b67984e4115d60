"""How many of the pieces that are ready travel together.

Pure. Few large chunks, because each costs a message, a turn and an event on both sides, yet none so
large that it holds up the others.
"""


def num_in_next_chunk(
    num_pieces: int, *, piece_bytes: int, most_bytes: int, most_pieces: int
) -> int:
    """Of so many equal pieces that are ready, how many to send now; 0 of none.

    Never more than `most_pieces`, nor more than `most_bytes` unless it is a single piece. Asked
    again for the rest it shares all of them out evenly over as few chunks as can be, so that no
    small one trails: a chunk is small only when no more is ready, or a bound is.
    """
    fitting = max(1, min(most_pieces, most_bytes // piece_bytes))
    num_chunks = -(-num_pieces // fitting)
    return -(-num_pieces // num_chunks) if num_chunks else 0
