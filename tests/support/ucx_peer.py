"""A peer on a UCX stream that says what a test wants: a source that is met, then misbehaves."""

import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
from numpy.typing import NDArray
from support.eventually import eventually

from kvtransfer.chunk import Landing
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    CONTROL_VERSION,
    Chunk,
    Finish,
    SessionId,
    StreamHello,
    StreamWelcome,
    stream_hello,
    stream_welcome,
)
from kvtransfer.transports.base import DialOptions, SinkStream
from kvtransfer.transports.framing import FirstMessage, send_message
from kvtransfer.transports.ucx import plane as ucx
from kvtransfer.transports.ucx.session import WorkerUp
from kvtransfer.transports.ucx.thread import UcxWorker
from protocol.ids import Epoch

LENGTH = struct.Struct("<I")
_HELLO = StreamHello(version=CONTROL_VERSION, session=SessionId(1), epoch=Epoch(1))
_WELCOME = StreamWelcome(version=CONTROL_VERSION, epoch=Epoch(1), num_blocks=8, block_bytes=4096)
_WITHIN_S = 10.0


class NoTaker:
    """Wants nothing."""

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        return None

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        raise AssertionError("nothing was begun")

    def finished(self, message: Finish) -> None:
        """Not waited for."""


def readable(fd: int) -> None:
    assert select.select([fd], [], [], _WITHIN_S)[0], "nothing came"


@contextmanager
def dialled(memory: BlockMemory) -> Iterator[tuple[ucx.UcxDial, socket.socket]]:
    """A dial on its way, and the other end of its socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        dial = ucx.dial(memory, DialOptions(address=address, hello=_HELLO))
        assert isinstance(dial, ucx.UcxDial)
        theirs, _ = server.accept()
    with theirs:
        yield dial, theirs


def hello_from(dial: ucx.UcxDial, theirs: socket.socket) -> StreamHello:
    theirs.setblocking(False)
    reader = FirstMessage(stream_hello)
    while (hello := reader.read(theirs)) is None:
        select.select([dial.fileno(), theirs.fileno()], [], [], _WITHIN_S)
        assert dial.advance() is None
    return hello


def welcome(theirs: socket.socket, *, address: bytes) -> None:
    send_message(theirs, stream_welcome.encode(msgspec.structs.replace(_WELCOME, setup=address)))


@contextmanager
def met(memory: BlockMemory) -> Iterator[tuple[SinkStream, socket.socket]]:
    """A stream that is up, and the source's end of its socket."""
    pool = BlockMemory.create(num_blocks=8, block_bytes=4096)
    worker = UcxWorker(pool.blocks)
    try:
        with dialled(memory) as (dial, theirs):
            worker.connect_peer(hello_from(dial, theirs).setup, probe="send")
            readable(worker.fileno())
            (address,) = (each.address for each in worker.events() if isinstance(each, WorkerUp))
            welcome(theirs, address=address)
            while (stream := dial.advance()) is None:
                readable(dial.fileno())
            yield stream, theirs
            eventually(stream.close)
    finally:
        eventually(worker.stop)
        pool.close()


__all__ = ["LENGTH", "NoTaker", "dialled", "hello_from", "met", "readable", "welcome"]
