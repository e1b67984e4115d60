"""The source's end of a TCP stream: chunks go out over its lanes straight from the pool.

Frames are dealt to lanes as these fall idle, whole chunks to a lane; never more bytes of chunks
than the sink has granted. Reads the pool only inside `flush`, and nothing of a dropped fetch.
"""

import os
import socket
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.native import flows
from kvtransfer.native.copy import HasSpan, Span
from kvtransfer.plan import Ranges
from kvtransfer.transports.base import SourceStream
from kvtransfer.transports.dial import check_for_end
from kvtransfer.transports.framing import MessageInbox
from kvtransfer.transports.polling import FdPoller, Polled
from kvtransfer.transports.tcp.frames import pack_head
from kvtransfer.transports.tcp.messages import (
    MAX_LANES,
    NAME,
    Credit,
    TcpSetup,
    TcpToSink,
    tcp_to_source,
)
from kvtransfer.transports.tcp_socket import is_local, tune
from protocol.errors import PeerLost, WireError

CHUNK_BYTES: Final = 8 << 20
"""Between hosts: 6 ms of 10 Gbit/s, which is how long others may wait for a lane."""
LOCAL_CHUNK_BYTES: Final = 32 << 20
"""Within a host: 6 ms too, and each chunk costs either end 0.7 ms of Python whose caches the
bytes have emptied."""
_TURN_BYTES: Final = 16 << 20
"""Most bytes sent in one turn: a few milliseconds at loopback's speed."""
_NOTHING: Final = Ranges(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(1, np.int64))
_zeros = bytearray(64 << 10)
_ZEROS: Final = Span(np.frombuffer(_zeros, np.uint8).ctypes.data, len(_zeros))


@dataclass(slots=True, eq=False)
class _Frame:
    """A message that waits for a lane, and where the bytes of its chunk lie."""

    message: TcpToSink
    ranges: Ranges
    body_bytes: int


@dataclass(slots=True, eq=False)
class _Lane:
    sock: socket.socket
    message: TcpToSink | None = None
    flow: flows.Flow | None = None
    """The frame on its way, of `message`."""
    is_dropped: bool = False
    """Zeros go on in its place."""
    awaits_room: bool = False


class TcpSourceStream(Polled, SourceStream):
    transport = NAME
    queued_bytes = 0
    """Of chunks that wait for a lane: each lane has one besides, so that none runs dry."""

    def __init__(self, sock: socket.socket, memory: HasSpan, setup: TcpSetup) -> None:
        """`setup` is the hello's: what its sink grants to begin with."""
        self.chunk_bytes = LOCAL_CHUNK_BYTES if is_local(sock) else CHUNK_BYTES
        self._span = memory.span
        self._granted = setup.window_bytes
        self._begun_bytes = 0
        """Of the chunks dealt to lanes so far."""
        self._num_begun = 0
        self._frames: deque[_Frame] = deque()
        self._lanes: dict[int, _Lane] = {}
        self._poller = FdPoller()
        self._inbox = MessageInbox(sock, tcp_to_source)
        self.add_lane(sock, 0)

    @property
    def unsent_bytes(self) -> int:
        """Of chunks, those on the lanes included."""
        flows_left = (lane.flow.left_bytes for lane in self._lanes.values() if lane.flow)
        return self.queued_bytes + sum(flows_left)

    def receive(self) -> None:
        for fd in self._poller.ready():
            for number, lane in self._lanes.items():
                if lane.sock.fileno() == fd and number:
                    check_for_end(lane.sock)
        for credit in self._inbox.receive():
            self._grant(credit)

    def add_lane(self, sock: socket.socket, lane: int) -> None:
        if lane in self._lanes or not 0 <= lane < MAX_LANES:
            raise WireError(f"lane {lane} is there already, or one too many")
        tune(sock)
        self._poller.watch(sock.fileno())
        self._lanes[lane] = _Lane(sock)

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        body_bytes = int(ranges.sizes_R.sum())
        self._frames.append(_Frame(chunk, ranges, body_bytes))
        self.queued_bytes += body_bytes

    def finish(self, message: Finish) -> None:
        self._frames.append(_Frame(message, _NOTHING, 0))

    def flush(self) -> None:
        left = _TURN_BYTES
        while left > 0:
            self._deal()
            moving = [lane.flow for lane in self._lanes.values() if lane.flow is not None]
            if not moving:
                break
            left -= flows.send(moving, budget=left)
            if not self._settle():
                break
        self._watch()

    def drop(self, fetch: FetchId) -> None:
        """What is on a lane goes on as zeros: its length was promised. Its checksums tell."""
        self._frames = deque(frame for frame in self._frames if frame.message.fetch != fetch)
        self.queued_bytes = sum(frame.body_bytes for frame in self._frames)
        for lane in self._lanes.values():
            message = lane.message
            if lane.flow is None or message is None or message.fetch != fetch:
                continue
            if lane.flow.left_bytes:
                lane.is_dropped = True
                zeros = flows.repeated(lane.flow.left_bytes, _ZEROS)
                head = lane.flow.head_left
                lane.flow = flows.Flow(lane.sock.fileno(), _ZEROS, zeros, head=head)

    def held_chunks(self) -> list[Chunk]:
        """Those offered whose bytes may still be read."""
        waiting = [frame.message for frame in self._frames]
        lanes = [x for x in self._lanes.values() if x.flow is not None and not x.is_dropped]
        return [x for x in (*waiting, *(lane.message for lane in lanes)) if isinstance(x, Chunk)]

    def close(self) -> None:
        self._frames.clear()
        self.queued_bytes = 0
        for lane in self._lanes.values():
            lane.flow = None
            lane.sock.close()
        self._poller.close()

    def _grant(self, credit: Credit) -> None:
        if credit.total_bytes < self._granted:
            raise WireError("credit was taken back")
        self._granted = credit.total_bytes

    def _deal(self) -> None:
        """Give frames to idle lanes, in order, as far as the credit goes."""
        for lane in self._lanes.values():
            if not self._frames:
                return
            if lane.flow is not None:
                continue
            frame = self._frames[0]
            if self._begun_bytes + frame.body_bytes > self._granted:
                return
            self._frames.popleft()
            self._begin(lane, frame)

    def _begin(self, lane: _Lane, frame: _Frame) -> None:
        self.queued_bytes -= frame.body_bytes
        self._begun_bytes += frame.body_bytes
        self._num_begun += isinstance(frame.message, Chunk)
        head = pack_head(frame.message, number=self._num_begun, body_bytes=frame.body_bytes)
        lane.message, lane.is_dropped = frame.message, False
        lane.flow = flows.Flow(lane.sock.fileno(), self._span, frame.ranges, head=head)

    def _settle(self) -> bool:
        """Take sent frames off their lanes; False when none was sent whole. Raises PeerLost."""
        any_sent = False
        for lane in self._lanes.values():
            if lane.flow is None or lane.flow.state == flows.MOVING:
                continue
            if lane.flow.state != flows.MOVED:
                raise PeerLost(f"the stream broke: {os.strerror(-lane.flow.state)}")
            lane.flow = None
            any_sent = True
        return any_sent

    def _watch(self) -> None:
        """Wake up when a lane with something to send can take more."""
        for lane in self._lanes.values():
            if lane.awaits_room != (lane.flow is not None):
                lane.awaits_room = not lane.awaits_room
                self._poller.watch(lane.sock.fileno(), writable=lane.awaits_room)
