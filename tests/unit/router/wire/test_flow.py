"""When a connection is read on."""

import asyncio

from router.wire.flow import BoundedFlow


class Wire(asyncio.Transport):
    is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


def test_nothing_is_read_on_while_much_is_unread_whoever_asks_for_it() -> None:
    unread, wire = bytearray(100_000), Wire()
    flow = BoundedFlow(wire, unread=unread)
    flow.pause_reading()
    flow.resume_reading()
    assert not wire.is_read
    del unread[:90_000]
    flow.resume_reading()
    assert wire.is_read
