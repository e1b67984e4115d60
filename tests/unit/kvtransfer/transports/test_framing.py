"""How bytes become messages, however they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.transports.framing import MessageCutter, framed
from protocol.errors import WireError

MAX_BYTES = 1_000


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 50))
def test_messages_come_out_as_they_went_in(messages: list[bytes], part_bytes: int) -> None:
    stream = b"".join(framed(message) for message in messages)
    cutter = MessageCutter(max_bytes=MAX_BYTES)
    popped = []
    for start in range(0, len(stream), part_bytes):
        cutter.add_bytes(stream[start : start + part_bytes])
        while (message := cutter.pop_message()) is not None:
            popped.append(message)
    assert popped == messages and cutter.num_bytes == 0


@given(st.binary(max_size=40))
def test_reading_what_is_missing_reads_one_message_and_no_byte_beyond(message: bytes) -> None:
    stream = framed(message) + b"beyond"
    cutter = MessageCutter(max_bytes=MAX_BYTES)
    while (missing := cutter.num_missing()) > 0:
        cutter.add_bytes(stream[:missing])
        stream = stream[missing:]
    assert cutter.pop_message() == message and stream == b"beyond"


def test_a_length_beyond_the_bound_is_refused_before_its_bytes_come() -> None:
    cutter = MessageCutter(max_bytes=MAX_BYTES)
    cutter.add_bytes(framed(bytes(MAX_BYTES + 1))[:4])
    with pytest.raises(WireError, match="1001 bytes exceeds 1000"):
        cutter.num_missing()
    with pytest.raises(WireError, match="1001 bytes exceeds 1000"):
        cutter.pop_message()
