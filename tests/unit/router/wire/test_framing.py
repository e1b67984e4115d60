"""Where one message ends in a stream of them, however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.errors import ApiError
from router.wire.framing import Framing

NEXT = b"GET /next HTTP/1.1\r\n\r\n"
pieces = st.sampled_from([b"\r", b"\n", b"\r\n\r\n", b"0", b"a", b"\r\n"])
bodies = st.lists(pieces, max_size=8).map(b"".join)


def chunked(body: bytes, *, size: int, trailer: bytes) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n" + trailer + b"\r\n"


def fed(sent: bytes, *, cut: int, length: int | None, size: int) -> list[bytes]:
    """The parts of a message of `size` bytes, of which a parser would know the end."""
    framing, unread = Framing(length), bytearray()
    parts: list[bytes] = []
    for start in range(0, len(sent), cut):
        unread += sent[start : start + cut]
        while unread and sum(map(len, parts)) < size:
            parts.append(bytes(framing.take_part(unread)))
    return parts


@given(bodies, st.integers(1, 9), st.integers(1, 40), st.sampled_from([b"", b"a: b\r\n"]))
def test_no_part_of_a_chunked_body_reaches_into_the_next_message(
    body: bytes, size: int, cut: int, trailer: bytes
) -> None:
    message = chunked(body, size=size, trailer=trailer)
    parts = fed(message + NEXT, cut=cut, length=None, size=len(message))
    assert b"".join(parts) == message


@given(bodies, st.integers(1, 40))
def test_a_body_of_known_length_ends_there(body: bytes, cut: int) -> None:
    parts = fed(body + NEXT, cut=cut, length=len(body), size=len(body))
    assert b"".join(parts) == body


@pytest.mark.parametrize("body", [b"\r\n" * 32768, b"0\r\n\r\n" * 13000])
def test_what_is_in_a_chunk_makes_no_more_parts_of_it(body: bytes) -> None:
    message = chunked(body, size=len(body), trailer=b"")
    assert len(fed(message, cut=len(message), length=None, size=len(message))) == 1


def test_one_part_has_a_bounded_number_of_chunks() -> None:
    message = chunked(b"a" * 20_000, size=1, trailer=b"")
    parts = fed(message, cut=len(message), length=None, size=len(message))
    assert max(part.count(b"a") for part in parts) <= 1024
    assert b"".join(parts) == message


def test_a_size_line_that_does_not_end_is_refused() -> None:
    framing = Framing(None)
    with pytest.raises(ApiError, match="a chunk's size and extensions"):
        for _ in range(100):
            framing.take_part(bytearray(b"5;" + b"a" * 100))
