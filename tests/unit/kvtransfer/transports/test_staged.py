"""Staging of a device pool: told nonsense by a peer, and between a device and a quick socket."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from support.device import FakeDeviceMemory

from kvtransfer.memory.staging import NUM_SPANS
from kvtransfer.messages import CONTROL_VERSION, Chunk, StreamWelcome
from kvtransfer.plan import Ranges, whole_blocks
from kvtransfer.transports.announcing import AnnouncingStream
from kvtransfer.transports.base import Unreachable
from kvtransfer.transports.shm.plane import map_source
from kvtransfer.transports.staged.gathers import Gathers
from kvtransfer.transports.staged.source import StagedSourceStream
from protocol.errors import PeerLost
from protocol.ids import Epoch


@pytest.fixture
def memory() -> Iterator[FakeDeviceMemory]:
    with closing(FakeDeviceMemory(num_blocks=4, block_bytes=4096)) as memory:
        yield memory


def test_a_chunk_larger_than_its_sink_said_ends_the_stream_not_the_source(
    memory: FakeDeviceMemory,
) -> None:
    ring = memory.staging.open_ring(span_bytes=4096)
    gathers = Gathers(memory, ring)
    chunk = Chunk(fetch=1, attempt=1, pieces=b"", blocks=b"")
    gathers.offer(chunk, whole_blocks(np.array([0, 1], np.uint32), 4096))
    with pytest.raises(PeerLost, match="8192 bytes, where spans of 4096 were agreed on"):
        list(gathers.advance())
    memory.staging.retire(ring, gathers.abandon())


def test_a_welcome_that_makes_no_sense_leaves_no_descriptor() -> None:
    welcome = StreamWelcome(
        version=CONTROL_VERSION, epoch=Epoch(1), num_blocks=1, block_bytes=64, setup=b"nonsense"
    )
    fds = [os.memfd_create("sent")]
    with pytest.raises(Unreachable):
        map_source(welcome, fds)
    assert len(fds) == 1, "nobody but the dial closes it now"
    os.close(fds[0])


class QuickCarrier(AnnouncingStream):
    """Whatever it is flushed with is read at once, and nobody says so."""

    transport, chunk_bytes = "quick", 4096

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair()
        super().__init__(ours)
        self._held: list[Chunk] = []
        self.num_sent = 0

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        self._held.append(chunk)

    def held_chunks(self) -> list[Chunk]:
        return self._held

    def flush(self) -> None:
        self.num_sent += len(self._held)
        self._held.clear()

    def close(self) -> None:
        super().close()
        self._theirs.close()


def test_more_chunks_than_spans_go_on_when_the_socket_takes_them_at_once(
    memory: FakeDeviceMemory,
) -> None:
    carrier = QuickCarrier()
    stream = StagedSourceStream(carrier, memory, memory.staging.open_ring(span_bytes=4096))
    for number in range(2 * NUM_SPANS + 1):
        chunk = Chunk(fetch=1, attempt=number, pieces=b"", blocks=b"")
        stream.offer(chunk, whole_blocks(np.array([0], np.uint32), 4096))
    stream.flush()
    assert carrier.num_sent == 2 * NUM_SPANS + 1 and not stream.queued_bytes
    stream.close()
