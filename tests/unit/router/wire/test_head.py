"""Whatever passes our door is read alike by the parser behind it."""

import httptools
from hypothesis import given
from hypothesis import strategies as st

from router.api.errors import ApiError
from router.wire.head import END, read_head
from router.wire.limits import HeadLimits

ODD = (
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b",", b"\xff", b"%" * 9000,
    b"Content-Length: 1\r\n", b"Host: b\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Upgrade: h2c\r\n", b"Connection: upgrade, close\r\n",
)  # fmt: skip
GOOD = (
    b"POST /v1/completions?a=b HTTP/1.1\r\nHost: a:80\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    b"GET http://[::1]:8/x HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost:a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
)


class Seen:
    def __init__(self) -> None:
        self.headers = dict[bytes, bytes]()
        self.bodies = b""
        self.num_ended = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name] = value

    def on_body(self, body: bytes) -> None:
        self.bodies += body

    def on_message_complete(self) -> None:
        self.num_ended += 1


edits = st.tuples(st.integers(0, 250), st.integers(0, 4), st.sampled_from(ODD))


@given(st.sampled_from(GOOD), st.lists(edits, max_size=3))
def test_a_head_that_passes_ends_where_the_parser_thinks(
    head: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    sent = bytearray(head)
    for place, length, odd in changes:
        sent[place : place + length] = odd
    raw = bytes(sent).partition(END)[0] + END
    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    try:
        passed = read_head(raw, HeadLimits())
        parser.feed_data(passed.raw)
    except (ApiError, httptools.HttpParserError):
        return
    assert seen.num_ended == (passed.length == 0 and not passed.chunked)
    parser.feed_data(b"0\r\n\r\n" if passed.chunked else b"x" * min(passed.length, 100))
    assert len(seen.bodies) == min(passed.length, 100)
    assert seen.num_ended == (passed.length <= 100)


def test_spaces_around_a_value_are_none_of_it() -> None:
    passed = read_head(b"GET / HTTP/1.1\r\nHost: a\r\nx-session-id:\t one \t \r\n\r\n", HeadLimits())
    seen = Seen()
    httptools.HttpRequestParser(seen).feed_data(passed.raw)
    assert seen.headers == {b"Host": b"a", b"x-session-id": b"one"}
