"""How pieces are shared out over chunks, for any sizes and bounds."""

from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.chunk import num_in_next_chunk

KIB, MIB = 1 << 10, 1 << 20


def chunks(num_pieces: int, *, piece_bytes: int, most_bytes: int, most_pieces: int) -> list[int]:
    """Pieces of each chunk until none are left."""
    sent: list[int] = []
    bounds = {"most_bytes": most_bytes, "most_pieces": most_pieces}
    while num_pieces:
        sent.append(num_in_next_chunk(num_pieces, piece_bytes=piece_bytes, **bounds))
        assert 0 < sent[-1] <= num_pieces
        num_pieces -= sent[-1]
    return sent


@given(
    num_pieces=st.integers(0, 2_000), piece_bytes=st.integers(1, 3000),
    most_bytes=st.integers(1000, 100_000), most_pieces=st.integers(1, 4096),
)  # fmt: skip
def test_chunks_keep_their_bounds_and_are_as_few_and_as_even_as_can_be(
    num_pieces: int, piece_bytes: int, most_bytes: int, most_pieces: int
) -> None:
    sent = chunks(
        num_pieces, piece_bytes=piece_bytes, most_bytes=most_bytes, most_pieces=most_pieces
    )
    for size in sent:
        assert size <= most_pieces
        assert size == 1 or size * piece_bytes <= most_bytes
    assert max(sent, default=0) - min(sent, default=0) <= 1
    fitting = max(1, min(most_pieces, most_bytes // piece_bytes))
    assert len(sent) == -(-num_pieces // fitting)


def sizes(num_pieces: int, piece_bytes: int) -> list[int]:
    sent = chunks(num_pieces, piece_bytes=piece_bytes, most_bytes=8 * MIB, most_pieces=4096)
    return [size * piece_bytes for size in sent]


def test_no_small_chunk_trails() -> None:
    assert sizes(9, MIB) == [5 * MIB, 4 * MIB]
    assert sizes(2048, 32 * KIB) == [8 * MIB] * 8


def test_what_is_all_there_is_goes_however_small() -> None:
    assert sizes(1, 32 * KIB) == [32 * KIB]
