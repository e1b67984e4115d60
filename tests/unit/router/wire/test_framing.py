"""Where one message ends in a stream of them, however it is cut."""

from hypothesis import given
from hypothesis import strategies as st

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
