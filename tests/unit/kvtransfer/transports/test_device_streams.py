"""The sinks' ends of device streams, told nonsense by a source, or right things at bad times."""

import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.device import FakeDeviceMemory
from support.eventually import eventually

from kvtransfer.chunk import PIECE, Landing
from kvtransfer.messages import CONTROL_VERSION, Chunk, FetchId, Finish, StreamHello
from kvtransfer.plan import whole_blocks
from kvtransfer.transports.announcing import Announcement, Left, announcement
from kvtransfer.transports.base import DialOptions, Unreachable
from kvtransfer.transports.cuda_ipc.messages import setup_of as cuda_ipc_setup_of
from kvtransfer.transports.cuda_ipc.sink import CudaIpcSinkStream, PeerMemory
from kvtransfer.transports.framing import MessageOutbox
from kvtransfer.transports.nccl import plane as nccl
from kvtransfer.transports.nccl.messages import Join, NcclToSink, nccl_to_sink, setup_of
from kvtransfer.transports.nccl.sink import NcclSinkStream
from kvtransfer.transports.nccl.source import NcclSourceStream
from protocol.errors import PeerLost, WireError
from protocol.ids import Epoch

NUM_BLOCKS = 8
BLOCK_BYTES = 512
FINISH = Finish(fetch=1, attempt=1, note=b"", since_s=0.0)


@dataclass
class Taker:
    """Lets every chunk land where it says, and keeps what it is told."""

    memory: FakeDeviceMemory
    ends: list[tuple[NDArray[np.uint64] | None, str]] = field(default_factory=list)
    words: list[Finish] = field(default_factory=list)
    wants: bool = True

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        pieces_P = np.frombuffer(chunk.pieces, PIECE)
        blocks_PB = np.frombuffer(chunk.blocks, "<u4").reshape(-1, 1)
        source = whole_blocks(blocks_PB[:, 0], self.memory.block_bytes)
        target = whole_blocks(pieces_P["slot"], self.memory.block_bytes)
        return Landing(chunk, pieces_P, blocks_PB, source, target) if self.wants else None

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        self.ends.append((sums_P, broken))

    def finished(self, message: Finish) -> None:
        self.words.append(message)


def chunk(*blocks: int, slots: list[int] | None = None, num_bytes: int = BLOCK_BYTES) -> Chunk:
    """Whole blocks into the slots of the same numbers, all of generation 0."""
    pieces_P = np.zeros(len(blocks), PIECE)
    pieces_P["slot"] = blocks if slots is None else slots
    pieces_P["num_bytes"] = num_bytes
    packed = np.array(blocks, "<u4").tobytes()
    return Chunk(fetch=1, attempt=1, pieces=pieces_P.tobytes(), blocks=packed)


@pytest.fixture
def memory() -> Iterator[FakeDeviceMemory]:
    with closing(FakeDeviceMemory(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)) as memory:
        yield memory


@pytest.fixture
def taker(memory: FakeDeviceMemory) -> Taker:
    return Taker(memory)


@pytest.fixture
def socks() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setblocking(False)
        yield ours, theirs


class TestCudaIpc:
    @pytest.fixture
    def lent(self) -> Iterator[FakeDeviceMemory]:
        with closing(FakeDeviceMemory(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)) as lent:
            for block in range(NUM_BLOCKS):
                lent.write(block, bytes([block + 1]) * BLOCK_BYTES)
            yield lent

    @pytest.fixture
    def stream(
        self, memory: FakeDeviceMemory, lent: FakeDeviceMemory,
        socks: tuple[socket.socket, socket.socket],
    ) -> Iterator[CudaIpcSinkStream]:  # fmt: skip
        exported = lent.driver.export(lent.span)
        source = PeerMemory.open(
            memory.driver, cuda_ipc_setup_of(lent, exported), [lent.generations_fd(), exported.fd],
            num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES,
        )  # fmt: skip
        stream = CudaIpcSinkStream(socks[0], memory, source)
        yield stream
        eventually(stream.close)

    @pytest.fixture
    def outbox(self, socks: tuple[socket.socket, socket.socket]) -> "MessageOutbox[Announcement]":
        return MessageOutbox(socks[1], announcement)

    def test_announced_blocks_are_copied_and_summed(
        self, stream: CudaIpcSinkStream, taker: Taker, outbox: "MessageOutbox[Announcement]"
    ) -> None:
        say(outbox, chunk(2, 5), FINISH)
        eventually(lambda: stream.receive(taker) or taker.words)
        assert taker.memory.read(2) == b"\3" * BLOCK_BYTES
        ((sums_P, broken),) = taker.ends
        assert sums_P is not None and not broken
        assert (
            sums_P
            == taker.memory.checksums(whole_blocks(np.array([2, 5]), taker.memory.block_bytes))
        ).all()

    def test_64_links_share_no_stream_and_leave_none(
        self, memory: FakeDeviceMemory, lent: FakeDeviceMemory
    ) -> None:
        """Torch's are 32, handed out round robin, and the engine's is among them."""
        before, streams = set(memory.fake.streams), []
        for _ in range(64):
            exported = lent.driver.export(lent.span)
            source = PeerMemory.open(
                memory.driver, cuda_ipc_setup_of(lent, exported),
                [lent.generations_fd(), exported.fd], num_blocks=NUM_BLOCKS,
                block_bytes=BLOCK_BYTES,
            )  # fmt: skip
            ours, theirs = socket.socketpair()
            theirs.close()
            streams.append(CudaIpcSinkStream(ours, memory, source))
        assert len(set(memory.fake.streams) - before) == 64
        assert all(stream.close() for stream in streams)
        assert set(memory.fake.streams) == before
        eventually(lambda: memory.fake.num_spans == 1)

    def test_a_block_of_another_generation_is_not_used(
        self, stream: CudaIpcSinkStream, taker: Taker, lent: FakeDeviceMemory,
        outbox: "MessageOutbox[Announcement]",
    ) -> None:  # fmt: skip
        lent.generations_N[2] = 1
        say(outbox, chunk(2))
        eventually(lambda: stream.receive(taker) or taker.ends)
        assert taker.ends == [(None, "the block has another generation")]
        assert not any(taker.memory.block(2))

    def test_a_block_that_is_given_away_during_its_copy_is_not_used(
        self, stream: CudaIpcSinkStream, taker: Taker, lent: FakeDeviceMemory,
        outbox: "MessageOutbox[Announcement]",
    ) -> None:  # fmt: skip
        with taker.memory.fake.streams[2].held():
            say(outbox, chunk(2))
            eventually(lambda: stream.receive(taker) or taker.memory.fake.streams[2].num_waiting)
            lent.generations_N[2] = 1
        eventually(lambda: stream.receive(taker) or taker.ends)
        assert taker.ends == [(None, "the block has another generation")]

    @pytest.mark.parametrize("blocks", [(NUM_BLOCKS,), (0, 0xFFFF_FFFE)])
    def test_a_block_that_the_source_has_not_is_not_read(
        self, stream: CudaIpcSinkStream, taker: Taker, blocks: tuple[int, ...],
        outbox: "MessageOutbox[Announcement]",
    ) -> None:  # fmt: skip
        say(outbox, chunk(*blocks, slots=list(range(len(blocks)))))
        eventually(lambda: stream.receive(taker) or taker.ends)
        assert taker.ends == [(None, "the source named a block that it has not")]

    def test_a_message_that_is_not_for_this_plane_ends_the_stream(
        self, stream: CudaIpcSinkStream, taker: Taker, outbox: "MessageOutbox[Announcement]"
    ) -> None:
        say(outbox, Left(number=1))
        with pytest.raises(WireError, match="no message of cuda_ipc"):
            stream.receive(taker)

    def test_the_finish_waits_for_the_copies_before_it(
        self, stream: CudaIpcSinkStream, taker: Taker, outbox: "MessageOutbox[Announcement]"
    ) -> None:
        with taker.memory.fake.streams[2].held():
            say(outbox, chunk(1), FINISH)
            for _ in range(3):
                stream.receive(taker)
            assert not taker.words and not taker.ends
            assert not stream.stop_writing(FetchId(1)) and not stream.close()
        eventually(lambda: stream.receive(taker) or taker.words)
        assert len(taker.ends) == 1

    def test_a_device_that_is_lost_writes_nothing(
        self, stream: CudaIpcSinkStream, taker: Taker, socks: tuple[socket.socket, socket.socket]
    ) -> None:
        socks[1].close()
        with pytest.raises(PeerLost):
            stream.receive(taker)
        assert stream.close() and stream.close()


class TestNccl:
    @pytest.fixture
    def stream(
        self, memory: FakeDeviceMemory, socks: tuple[socket.socket, socket.socket]
    ) -> Iterator[NcclSinkStream]:
        stream = NcclSinkStream(socks[0], memory, setup_of(memory))
        yield stream
        eventually(stream.close)
        for made in memory.fake_collectives.made:
            eventually(lambda made=made: made.aborted)  # type: ignore[misc]

    @pytest.fixture
    def outbox(self, socks: tuple[socket.socket, socket.socket]) -> "MessageOutbox[NcclToSink]":
        return MessageOutbox(socks[1], nccl_to_sink)

    @pytest.fixture
    def join(self, memory: FakeDeviceMemory) -> Join:
        return Join(unique_id=memory.fake_collectives.unique_id())

    @pytest.mark.parametrize(
        "wrong",
        [
            chunk(1, num_bytes=BLOCK_BYTES + 8),
            chunk(1, num_bytes=0),
            chunk(1, num_bytes=1 << 40),
            chunk(*range(8), slots=[0] * 8, num_bytes=(1 << 64) - 16),
            Chunk(fetch=1, attempt=1, pieces=b"short", blocks=b""),
        ],
        ids=["half a grain", "nothing", "more than staging", "sums beyond 64 bits", "no pieces"],
    )
    def test_a_chunk_of_no_possible_size_ends_the_stream(
        self, stream: NcclSinkStream, taker: Taker, outbox: "MessageOutbox[NcclToSink]", join: Join,
        wrong: Chunk,
    ) -> None:  # fmt: skip
        say(outbox, join, wrong)
        with pytest.raises(WireError, match="a chunk of"):
            stream.receive(taker)

    def test_a_chunk_before_a_communicator_ends_the_stream(
        self, stream: NcclSinkStream, taker: Taker, outbox: "MessageOutbox[NcclToSink]"
    ) -> None:
        say(outbox, chunk(1))
        with pytest.raises(WireError, match="before a communicator"):
            stream.receive(taker)

    def test_64_links_share_no_stream_and_leave_none(self, memory: FakeDeviceMemory) -> None:
        before = set(memory.fake.streams)
        streams: list[NcclSinkStream | NcclSourceStream] = []
        for _ in range(32):
            ours, theirs = socket.socketpair()
            streams.append(NcclSinkStream(ours, memory, setup_of(memory)))
            streams.append(NcclSourceStream(theirs, memory, setup_of(memory)))
        assert len(set(memory.fake.streams) - before) == 64
        for stream in streams:
            stream.close()
        assert set(memory.fake.streams) == before

    def test_a_second_communicator_ends_the_stream(
        self, stream: NcclSinkStream, taker: Taker, outbox: "MessageOutbox[NcclToSink]", join: Join
    ) -> None:
        say(outbox, join, join)
        with pytest.raises(WireError, match="second communicator"):
            stream.receive(taker)

    def test_an_id_of_another_size_ends_the_stream_and_gives_the_staging_back(
        self, stream: NcclSinkStream, taker: Taker, outbox: "MessageOutbox[NcclToSink]"
    ) -> None:
        num_spans = taker.memory.fake.num_spans
        say(outbox, Join(unique_id=b"short"))
        with pytest.raises(PeerLost, match="no communicator can be made"):
            stream.receive(taker)
        assert taker.memory.fake.num_spans == num_spans

    def test_chunks_beyond_the_staging_wait(
        self, stream: NcclSinkStream, taker: Taker, outbox: "MessageOutbox[NcclToSink]", join: Join
    ) -> None:
        say(outbox, join, *[chunk(block) for block in range(NUM_BLOCKS)], FINISH)
        for _ in range(5):
            stream.receive(taker)
        assert not taker.ends and not taker.words
        assert stream.stop_writing(FetchId(1)), "nothing has come that could be written"


def say(outbox: "MessageOutbox[Any]", *words: object) -> None:
    for word in words:
        outbox.put_message(word)
    outbox.flush()


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "a host:1"])
def test_a_source_that_says_it_listens_nowhere_is_unreachable(address: str) -> None:
    hello = StreamHello(version=CONTROL_VERSION, session=1, epoch=Epoch(1))
    memory = FakeDeviceMemory(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
    with (
        closing(memory), pytest.raises(Unreachable),
        closing(nccl.dial(memory, DialOptions(address=address, hello=hello))) as dial,
    ):  # fmt: skip
        eventually(dial.advance)
