"""One connection of a TCP stream at the sink: frames come in, one after another.

Reads header and message of a frame, however they are cut, and never a byte beyond; the bytes of its
chunk go straight into the slots of its landing, or nowhere. Does not know other lanes.
"""

import os
import socket
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.messages import FetchId
from kvtransfer.native import flows
from kvtransfer.native.copy import Span
from kvtransfer.sum_kinds import SumKind
from kvtransfer.transports.tcp.frames import HEADER_BYTES, Header, unpack_header
from kvtransfer.transports.tcp.messages import TcpToSink, tcp_to_sink
from protocol.errors import PeerLost, WireError

_scratch = bytearray(256 << 10)
_SCRATCH: Final = Span(np.frombuffer(_scratch, np.uint8).ctypes.data, len(_scratch))
"""Where unwanted bytes go: nobody reads it, so all lanes share it."""


class Lane:
    def __init__(self, sock: socket.socket, sum_kind: SumKind | None) -> None:
        """`sum_kind`: the checksums taken of bodies on the way; None: none."""
        self.sock = sock
        self._sum_kind: SumKind | None = sum_kind
        self.number = 0
        """Of the frame that is being read."""
        self.landing: Landing | None = None
        """Where the body goes; None: nowhere."""
        self.flow: flows.Flow | None = None
        """The body that is being read."""
        self._fd = sock.fileno()
        self._header: Header | None = None
        self._buffer = bytearray(HEADER_BYTES)
        self._num_read = 0

    def fileno(self) -> int:
        return self._fd

    def read_head(self) -> tuple[TcpToSink, int] | None:
        """The next frame's message and the length of its body, or None while they are not here.
        Raises PeerLost or WireError."""
        if self._header is None:
            if not self._fill():
                return None
            self._header = unpack_header(bytes(self._buffer))
            self._expect(self._header.message_bytes)
        if not self._fill():
            return None
        header, self._header = self._header, None
        packed = bytes(self._buffer)
        header.check_message(packed)
        message = tcp_to_sink.decode(packed)
        self._expect(HEADER_BYTES)
        self.number = header.number
        return message, header.body_bytes

    def land(self, landing: Landing, memory: Span) -> None:
        """The body goes to the target of `landing` in `memory`. Raises WireError when it cannot."""
        try:
            self.flow = flows.Flow(self._fd, memory, landing.target, sum_kind=self._sum_kind)
        except ValueError as error:
            raise WireError(f"a chunk lands outside the pool: {error}") from error
        self.landing = landing

    def discard(self, num_bytes: int) -> None:
        """The body, or the rest of it, goes nowhere."""
        self.landing = None
        self.flow = flows.Flow(self._fd, _SCRATCH, flows.repeated(num_bytes, _SCRATCH))

    def stop_writing(self, fetch: FetchId) -> Landing | None:
        """Write nothing more of this fetch into any slot; the landing that ends by it."""
        landing = self.landing
        if landing is None or landing.fetch != fetch or self.flow is None:
            return None
        self.landing = None
        if self.flow.left_bytes:
            self.discard(self.flow.left_bytes)
        return landing

    def pop_end(self) -> tuple[Landing | None, NDArray[np.uint64] | None] | None:
        """Of a body that is here whole: its landing, and the sums taken. Raises PeerLost."""
        flow = self.flow
        if flow is None or flow.state == flows.MOVING:
            return None
        if flow.state != flows.MOVED:
            closed = flow.state == flows.PEER_CLOSED
            why = "the other process closed its stream" if closed else os.strerror(-flow.state)
            raise PeerLost(f"a chunk was cut short: {why}")
        landing, self.landing, self.flow = self.landing, None, None
        return landing, flow.sums_P

    def close(self) -> None:
        self.landing = self.flow = None
        self.sock.close()

    def _expect(self, num_bytes: int) -> None:
        self._buffer = bytearray(num_bytes)
        self._num_read = 0

    def _fill(self) -> bool:
        """Read into the buffer; True when it is full."""
        while self._num_read < len(self._buffer):
            try:
                count = self.sock.recv_into(memoryview(self._buffer)[self._num_read :])
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise PeerLost(f"the stream broke: {error}") from error
            if not count:
                raise PeerLost("the other process closed its stream")
            self._num_read += count
        return True
