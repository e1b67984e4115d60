"""The sink's end of a TCP stream: chunks come in over its lanes straight into their slots.

Lane 0 is there when the stream is; the others come up by themselves, or do not and are done
without. One that dies ends the stream. Grants the source credit as bytes arrive, and hands on the
end of a fetch only when all chunks begun before it are here.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native import flows
from kvtransfer.native.copy import HasSpan, checksums
from kvtransfer.sum_kinds import XXH3, SumKind
from kvtransfer.transports.base import ChunkTaker, SinkStream, Unreachable
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.framing import MessageOutbox
from kvtransfer.transports.polling import FdPoller, Polled
from kvtransfer.transports.tcp.lane import Lane
from kvtransfer.transports.tcp.messages import NAME, Credit, tcp_to_source
from kvtransfer.transports.tcp.order import ChunkOrder
from protocol.errors import WireError

log = logging.getLogger(__name__)

_TURN_BYTES: Final = 16 << 20
"""Most bytes taken in one turn: a few milliseconds at loopback's speed."""
_GRANTS: Final = 4
"""Credit is granted in as many parts of the window."""
DialLane = Callable[["TcpSinkStream"], Dial]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpStatistics:
    """What a stream is and has done so far, at its sink."""

    num_dialling: int
    """Lanes on their way up."""
    last_numbers: tuple[int, ...]
    """Of each lane that is up: the number of the frame it read last; 0 for none."""
    received_bytes: int
    """Of chunks, over all lanes."""
    granted_bytes: int
    """Of chunks that the source was told it may have sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSinkSetup:
    """What the sink's end needs besides its first socket."""

    window_bytes: int
    """What the hello granted."""
    lanes: Sequence[DialLane] = ()
    """Dial the stream's further sockets."""
    sum_kind: SumKind | None = XXH3
    """None: whoever takes the chunks sums them."""
    has_room: Callable[[], bool] = lambda: True
    """A chunk may be begun now."""


class TcpSinkStream(Polled, SinkStream):
    transport = NAME

    def __init__(self, sock: socket.socket, memory: HasSpan, setup: TcpSinkSetup) -> None:
        self._memory = memory
        self._sum_kind: SumKind | None = setup.sum_kind
        self._has_room = setup.has_room
        self._window = self._told = setup.window_bytes
        self._received = 0
        """Bytes of chunks, over all lanes."""
        self._order = ChunkOrder()
        self._lanes: list[Lane] = []
        self._poller = FdPoller()
        self._credits = MessageOutbox(sock, tcp_to_source)
        self._dials: list[Dial] = []
        self._awaits_room = False
        """The credits do; the socket never was that full."""
        self._poller.watch(sock.fileno())
        self.admit(sock)
        for dial in setup.lanes:
            self._dial(dial)

    def admit(self, sock: socket.socket) -> None:
        """A lane is up."""
        self._lanes.append(Lane(sock, self._sum_kind))

    def statistics(self) -> TcpStatistics:
        return TcpStatistics(
            num_dialling=len(self._dials), last_numbers=tuple(x.number for x in self._lanes),
            received_bytes=self._received, granted_bytes=self._told,
        )  # fmt: skip

    def receive(self, taker: ChunkTaker) -> bool:
        if self._dials:
            self._advance()
        left = _TURN_BYTES
        while left > 0 and self._begin(taker):
            moving = [lane.flow for lane in self._lanes if lane.flow is not None]
            idle = [lane.fileno() for lane in self._lanes if lane.flow is None]
            count = flows.receive(moving, idle=idle, budget=left)
            self._received += count
            left -= count
            ended = self._end(taker)
            self._grant()
            if not ended and not count:
                break
        return left <= 0

    def stop_writing(self, fetch: FetchId) -> bool:
        for lane in self._lanes:
            lane.stop_writing(fetch)
        return True

    def close(self) -> bool:
        for dial in self._dials:
            dial.close()
        for lane in self._lanes:
            lane.close()
        self._dials, self._lanes = [], []
        self._poller.close()
        return True

    def _begin(self, taker: ChunkTaker) -> bool:
        """Take the heads of frames that have come; True when a body is to be read."""
        for lane in self._lanes:
            while lane.flow is None and self._has_room():
                if (frame := lane.read_head()) is None:
                    break
                message, body_bytes = frame
                match message:
                    case Chunk():
                        self._begin_chunk(lane, message, body_bytes, taker)
                    case Finish():
                        if body_bytes:
                            raise WireError("a finish comes with bytes")
                        self._tell(self._order.add_finish(message, after=lane.number), taker)
        return any(lane.flow is not None for lane in self._lanes)

    def _begin_chunk(self, lane: Lane, chunk: Chunk, body_bytes: int, taker: ChunkTaker) -> None:
        if not body_bytes:
            raise WireError("a chunk without bytes")
        landing = taker.begin_chunk(chunk)
        if landing is None:
            lane.discard(body_bytes)
            return
        if landing.num_bytes != body_bytes:
            why = f"a chunk of {landing.num_bytes} bytes comes as {body_bytes}"
            taker.end_chunk(landing, None, broken=why)
            raise WireError(why)
        lane.land(landing, self._memory.span)

    def _end(self, taker: ChunkTaker) -> bool:
        """Hand on the chunks that are here whole; True when there was one. Raises PeerLost."""
        any_ended = False
        for lane in self._lanes:
            if (end := lane.pop_end()) is None:
                continue
            any_ended = True
            landing, sums_P = end
            if landing is not None:
                taker.end_chunk(landing, self._sums(landing) if sums_P is None else sums_P)
            self._tell(self._order.end_chunk(lane.number), taker)
        return any_ended

    def _sums(self, landing: Landing) -> NDArray[np.uint64]:
        """Of pieces that were not summed on the way."""
        if self._sum_kind is None:
            return np.empty(0, np.uint64)
        try:
            return checksums(self._memory.span, landing.target, self._sum_kind)
        except ValueError as error:
            raise WireError(f"a chunk cannot be summed: {error}") from error

    def _tell(self, finished: list[Finish], taker: ChunkTaker) -> None:
        for message in finished:
            taker.finished(message)

    def _grant(self) -> None:
        """Let the source send as much more as has come; at the latest when nothing comes."""
        total = self._received + self._window
        idle = total > self._told and not any(lane.flow for lane in self._lanes)
        if idle or total - self._told >= self._window // _GRANTS:
            self._credits.put_message(Credit(total_bytes=total))
            self._told = total
        self._credits.flush()
        if bool(self._credits.num_bytes) != self._awaits_room:
            self._awaits_room = not self._awaits_room
            self._poller.watch(self._lanes[0].fileno(), writable=self._awaits_room)

    def _dial(self, dial_lane: DialLane) -> None:
        try:
            dial = dial_lane(self)
        except Unreachable as error:
            log.info("a lane less", extra={"why": str(error)})
            return
        self._dials.append(dial)
        self._poller.watch(dial.fileno(), writable=True)

    def _advance(self) -> None:
        """Go on with the lanes that are on their way up."""
        for dial in list(self._dials):
            fd = dial.fileno()
            try:
                if dial.advance() is None:
                    self._poller.watch(fd, writable=dial.writable)
                    continue
                self._poller.watch(fd, writable=False)
            except Unreachable as error:
                log.info("a lane less", extra={"why": str(error)})
                self._poller.forget(fd)
                dial.close()
            self._dials.remove(dial)
