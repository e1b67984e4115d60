"""A TCP stream between two pools, over real sockets, with a fake session above it."""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from support.eventually import eventually
from support.transfer import fill

from kvtransfer.chunk import PIECE, Landing, pack_chunk, unpack_chunk
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.messages import (
    CONTROL_VERSION,
    Chunk,
    FetchId,
    Finish,
    StreamHello,
    StreamWelcome,
)
from kvtransfer.plan import whole_blocks
from kvtransfer.transports.tcp.messages import TcpSetup
from kvtransfer.transports.tcp.sink import TcpSinkSetup, TcpSinkStream
from kvtransfer.transports.tcp.source import TcpSourceStream
from protocol.ids import Epoch

NUM_BLOCKS, BLOCK_BYTES = 64, 100_032
"""A block is larger than what a socket of these takes at once."""
AMPLE = 1 << 30
ONE, TWO = FetchId(1), FetchId(2)
HELLO = StreamHello(version=CONTROL_VERSION, session=1, epoch=Epoch(1))
WELCOME = StreamWelcome(
    version=CONTROL_VERSION, epoch=Epoch(1), num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES
)


def sockets() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over loopback, with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for sock in (ours, theirs):
        sock.setblocking(False)
    return ours, theirs


def chunk_of(
    memory: BlockMemory, blocks: Sequence[int], slots: Sequence[int], *, fetch: FetchId = ONE
) -> Chunk:
    """Pieces that are whole blocks of `memory`, and go to whole blocks."""
    blocks_P = np.array(blocks, np.uint32)
    pieces_P = np.zeros(len(blocks), PIECE)
    pieces_P["slot"] = slots
    pieces_P["num_bytes"] = memory.block_bytes
    pieces_P["checksum"] = memory.checksums(whole_blocks(blocks_P, memory.block_bytes))
    return pack_chunk(fetch=fetch, attempt=1, pieces_P=pieces_P, blocks_PB=blocks_P.reshape(-1, 1))


def done(fetch: FetchId = ONE) -> Finish:
    return Finish(fetch=fetch, attempt=1, note=b"n", since_s=0.0)


@dataclass
class Taker:
    """Lets the chunks of the fetches it wants land where they say."""

    memory: BlockMemory
    wanted: set[FetchId] = field(default_factory=lambda: {ONE, TWO})
    begun: list[Landing] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    """Slots that landed with the checksum they should have."""
    wrong: list[int] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """What was told, in order."""

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        if chunk.fetch not in self.wanted:
            return None
        pieces_P, blocks_PB = unpack_chunk(chunk, blocks_per_slot=1)
        target = whole_blocks(pieces_P["slot"], self.memory.block_bytes)
        landing = Landing(chunk, pieces_P, blocks_PB, target, target)
        self.begun.append(landing)
        return landing

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        self.words.append(broken or f"chunk of {landing.fetch}")
        for place, slot in enumerate(landing.pieces_P["slot"].tolist()):
            good = sums_P is not None and sums_P[place] == landing.pieces_P["checksum"][place]
            (self.right if good else self.wrong).append(slot)

    def finished(self, message: Finish) -> None:
        self.words.append(f"finish of {message.fetch}")


class HeldLane:
    """A lane that takes all that the source sends, and gives it to the sink when released."""

    def __init__(self) -> None:
        self.ours, self._entry = sockets()
        self._exit, self.theirs = sockets()
        self._held = bytearray()
        self.is_released = False

    def pass_on(self) -> None:
        with suppress(BlockingIOError):
            while data := self._entry.recv(1 << 20):
                self._held += data
        with suppress(BlockingIOError):
            while self._held and self.is_released:
                del self._held[: self._exit.send(self._held)]

    def close(self) -> None:
        self._entry.close()
        self._exit.close()


@dataclass
class Pair:
    """A source's pool of filled blocks and a sink's of zeros, and a stream of lanes between."""

    source: TcpSourceStream
    sink: TcpSinkStream
    lent: BlockMemory
    taker: Taker
    ours: list[socket.socket]
    """The source's ends, lane by lane."""
    theirs: list[socket.socket]
    held: HeldLane | None = None
    """Lane 0, if it is held back."""

    def offer(self, blocks: Sequence[int], slots: Sequence[int], *, fetch: FetchId = ONE) -> None:
        blocks_P = np.array(blocks, np.uint32)
        self.source.offer(
            chunk_of(self.lent, blocks, slots, fetch=fetch),
            whole_blocks(blocks_P, self.lent.block_bytes),
        )

    @property
    def unsent_bytes(self) -> int:
        """Of chunks offered."""
        return self.source.unsent_bytes

    def step(self) -> None:
        self.source.flush()
        if self.held is not None:
            self.held.pass_on()
        self.sink.receive(self.taker)
        self.source.receive()

    def move(self, until: Callable[[], bool]) -> None:
        """Go on at both ends until `until` holds."""

        def moved() -> bool:
            self.step()
            return until()

        eventually(moved)

    def landed(self, slot: int, block: int) -> bool:
        return self.taker.memory.block(slot) == self.lent.block(block)


class Pairs:
    """Pairs of one test, closed after it."""

    def __init__(self) -> None:
        self._pairs: list[Pair] = []

    def make(self, *, num_lanes: int = 1, granted: int = AMPLE, held: bool = False) -> Pair:
        """`held`: lane 0 is held back."""
        lent = BlockMemory.create(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
        for block in range(NUM_BLOCKS):
            fill(lent, block)
        pool = BlockMemory.create(num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
        ours, theirs = map(list, zip(*(sockets() for _ in range(num_lanes)), strict=True))
        held_lane = HeldLane() if held else None
        if held_lane is not None:
            ours[0].close()
            theirs[0].close()
            ours[0], theirs[0] = held_lane.ours, held_lane.theirs
        source = TcpSourceStream(ours[0], lent, TcpSetup(window_bytes=granted))
        sink = TcpSinkStream(theirs[0], pool, TcpSinkSetup(window_bytes=granted))
        for lane in range(1, num_lanes):
            source.add_lane(ours[lane], lane)
            sink.admit(theirs[lane])
        self._pairs.append(Pair(source, sink, lent, Taker(pool), ours, theirs, held_lane))
        return self._pairs[-1]

    def close(self) -> None:
        for pair in self._pairs:
            pair.source.close()
            pair.sink.close()
            if pair.held is not None:
                pair.held.close()
            pair.lent.close()
            pair.taker.memory.close()
