"""The sinks connected to one source: each has a control identity, a session and a stream.

A sink says `Open` on the control link, then proves on a data stream that the session is its own.
When that stream ends it may open another within a short grace; after that the sink is gone, and so
is everything it held. Knows nothing of leases beyond their ids.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from kvtransfer.deadlines import Deadlines
from kvtransfer.messages import (
    CONTROL_VERSION,
    Open,
    Opened,
    RefusalCode,
    Refused,
    SessionId,
    StreamHello,
    StreamWelcome,
    ToSink,
    stream_hello,
)
from kvtransfer.sum_kinds import XXH3, SumKind, best_kind
from kvtransfer.transports.base import Listener, SourceStream, Unreachable
from kvtransfer.transports.control import ControlServer, Identity, Poller
from kvtransfer.transports.dial import send_welcome
from kvtransfer.transports.framing import FirstMessage, close_fds
from protocol.errors import TransferError, WireError
from protocol.ids import LeaseId, WorkerId

log = logging.getLogger(__name__)

MAX_SINKS = 1_024
_HELLO_S = 5.0
"""From `Open` to the stream's hello: a local round trip, or a far one on a bad day."""
PAUSE_S = 0.1
"""Without descriptors, until connections are accepted again: they keep the socket readable."""
GRACE_S = 0.5
"""From a stream's end to the next one's hello. A sink that lives dials at once; one that was killed
keeps its leases this long."""


@dataclass(slots=True, eq=False)
class ConnectedSink:
    """One sink, until it has been without a stream for too long."""

    identity: Identity
    session: SessionId
    worker: WorkerId
    stream: SourceStream | None = None
    chunk_bytes: int = 0
    """Most bytes that the two ends of the stream like in one chunk."""
    sum_kind: SumKind = XXH3
    """Of the checksums on the stream."""
    leases: set[LeaseId] = field(default_factory=set)
    """Those it fetches or renews."""
    awaits_room: bool = False
    """The poller watches for room in the stream's socket."""
    stream_end: str = ""
    """How its last stream ended."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One whose hello is not here yet."""

    sock: socket.socket
    listener: Listener
    reader: FirstMessage[StreamHello]


class Sinks:
    """Those of one source. `on_lost` is told once of each that is gone, and why."""

    def __init__(
        self, *, control: ControlServer, listeners: Sequence[Listener], poller: Poller,
        opened: Opened, welcome: StreamWelcome, sum_kinds: Sequence[SumKind],
        on_lost: Callable[[ConnectedSink, str], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """`sum_kinds`: checksums that our pool can have."""
        self._clock = clock
        self._sum_kinds = sum_kinds
        self._control = control
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._poller = poller
        self._opened = opened
        self._welcome = welcome
        self._on_lost = on_lost
        self._sinks: dict[Identity, ConnectedSink] = {}
        self._sessions: dict[SessionId, ConnectedSink] = {}
        self._streams: dict[int, ConnectedSink] = {}
        self._connections: dict[int, _Connection] = {}
        self._deadlines: Deadlines[ConnectedSink | _Connection | int] = Deadlines()
        """Of the last: a listener that accepts nothing for a moment, for want of descriptors."""
        for fd in self._listeners:
            poller.watch(fd)

    def __len__(self) -> int:
        return len(self._sinks)

    def find_sink(self, identity: Identity) -> ConnectedSink | None:
        return self._sinks.get(identity)

    def next_in_s(self) -> float | None:
        return self._deadlines.next_in_s(self._clock())

    def open_session(self, identity: Identity, message: Open) -> None:
        """Answer a sink's first message."""
        if message.epoch != self._opened.epoch:
            self.refuse_sink(identity, "epoch", "the source has been restarted")
        elif identity in self._sinks or message.session in self._sessions:
            self.refuse_sink(identity, "protocol", "opened twice")
        elif len(self._sinks) >= MAX_SINKS:
            self.refuse_sink(identity, "protocol", "too many sinks")
        else:
            sink = ConnectedSink(identity, SessionId(message.session), message.worker)
            self._sinks[identity] = self._sessions[sink.session] = sink
            self._deadlines.set(sink, now_s=self._clock(), remaining_s=_HELLO_S)
            self.send(sink, self._opened)

    def refuse_sink(self, identity: Identity, code: RefusalCode, reason: str) -> None:
        """Tell a sink why its link cannot work, and forget it."""
        self._control.send(identity, Refused(code=code, reason=reason))
        sink = self._sinks.get(identity)
        if sink is not None:
            self.lose_sink(sink, reason)

    def send(self, sink: ConnectedSink, message: ToSink) -> None:
        """A sink that cannot be told anything is lost."""
        if not self._control.send(sink.identity, message):
            self.lose_sink(sink, "its control link is gone or full")

    def receive_ready(self, ready: set[int]) -> None:
        """Take in what the descriptors in `ready` have, and drop those that never came."""
        for fd in ready:
            if fd in self._listeners:
                self._accept(self._listeners[fd])
            elif fd in self._connections:
                self._read_hello(self._connections[fd])
            elif fd in self._streams:
                self._receive(self._streams[fd])
        for late in self._deadlines.expired(self._clock()):
            if isinstance(late, ConnectedSink):
                self.lose_sink(late, late.stream_end or "it opened no stream")
            elif isinstance(late, _Connection):
                self._close_connection(late)
            else:
                self._deadlines.drop(late)
                self._poller.watch(late)

    def flush_stream(self, sink: ConnectedSink) -> None:
        """Send what the sink's stream has queued, and watch for room if that is not all."""
        stream = sink.stream
        if stream is None:
            return
        try:
            stream.flush()
        except TransferError as error:
            self._end_stream(sink, str(error))
            return
        if sink.awaits_room != stream.awaits_room:
            sink.awaits_room = stream.awaits_room
            self._poller.watch(stream.fileno(), writable=sink.awaits_room)

    def lose_sink(self, sink: ConnectedSink, why: str) -> None:
        """Forget a sink and close its stream; tells `on_lost` once."""
        if self._sinks.pop(sink.identity, None) is None:
            return
        del self._sessions[sink.session]
        self._deadlines.drop(sink)
        self._drop_stream(sink)
        self._on_lost(sink, why)

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._close_connection(connection)
        for sink in list(self._sinks.values()):
            self.lose_sink(sink, "the source closes")
        for fd, listener in self._listeners.items():
            self._poller.forget(fd)
            listener.close()

    def _accept(self, listener: Listener) -> None:
        try:
            self._accept_all(listener)
        except OSError as error:
            log.warning(
                "no descriptor for a sink's connection: raise the limit of open files",
                extra={"why": str(error)},
            )
            fd = listener.fileno()
            self._poller.forget(fd)
            self._deadlines.set(fd, now_s=self._clock(), remaining_s=PAUSE_S)

    def _accept_all(self, listener: Listener) -> None:
        while (sock := listener.accept()) is not None:
            if len(self._connections) >= MAX_SINKS:
                sock.close()
                continue
            connection = _Connection(sock, listener, FirstMessage(stream_hello))
            self._connections[sock.fileno()] = connection
            self._deadlines.set(connection, now_s=self._clock(), remaining_s=_HELLO_S)
            self._poller.watch(sock.fileno())

    def _read_hello(self, connection: _Connection) -> None:
        try:
            hello = connection.reader.read(connection.sock)
            if hello is None:
                return
            sink = self._sink_of(hello)
            self._welcome_sink(sink, connection, hello)
        except (TransferError, WireError, OSError):  # of a device too, or of no descriptor left
            self._close_connection(connection)

    def _welcome_sink(
        self, sink: ConnectedSink, connection: _Connection, hello: StreamHello
    ) -> None:
        """Make the connection the sink's stream, or a lane of it."""
        sock, fds = connection.sock, connection.reader.fds
        fd = sock.fileno()
        if hello.lane:
            assert sink.stream is not None
            send_welcome(sock, msgspec.structs.replace(self._welcome, sum_kind=sink.sum_kind))
            sink.stream.add_lane(sock, hello.lane)
        else:
            self._open_stream(sink, connection, hello)
            self._deadlines.drop(sink)
        del self._connections[fd]
        self._deadlines.drop(connection)
        close_fds(fds)
        self._poller.forget(fd)
        if not hello.lane:
            assert sink.stream is not None
            self._streams[sink.stream.fileno()] = sink
            self._poller.watch(sink.stream.fileno())

    def _open_stream(
        self, sink: ConnectedSink, connection: _Connection, hello: StreamHello
    ) -> None:
        """Agree on what is sent, and make the connection a stream. Raises WireError when there is
        none to be had, having said why."""
        sock, fds = connection.sock, connection.reader.fds
        try:
            sink.sum_kind = self._agreed_kind(hello)
            welcome = msgspec.structs.replace(self._welcome, sum_kind=sink.sum_kind)
            stream = connection.listener.welcome(sock, welcome, hello, fds)
        except Unreachable as error:
            send_welcome(sock, msgspec.structs.replace(self._welcome, refusal=str(error)[:2_000]))
            raise WireError(str(error)) from error
        sink.stream, sink.awaits_room = stream, False
        sink.chunk_bytes = min(stream.chunk_bytes, hello.chunk_bytes or stream.chunk_bytes)

    def _agreed_kind(self, hello: StreamHello) -> SumKind:
        """The checksum that both pools can have. Raises Unreachable."""
        kind = best_kind(hello.sum_kinds, self._sum_kinds)
        if kind is None:
            ours, theirs = ", ".join(self._sum_kinds), ", ".join(hello.sum_kinds)
            raise Unreachable(f"no checksum in common: the source's are {ours}, ours {theirs}")
        return kind

    def _sink_of(self, hello: StreamHello) -> ConnectedSink:
        """Whose stream this is. Raises WireError when it cannot be one."""
        sink = self._sessions.get(SessionId(hello.session))
        if sink is None or (sink.stream is None) != (hello.lane == 0):
            raise WireError("no such session waits for a stream")
        if hello.version != CONTROL_VERSION or hello.epoch != self._opened.epoch:
            raise WireError("another version or epoch")
        return sink

    def _receive(self, sink: ConnectedSink) -> None:
        assert sink.stream is not None
        try:
            sink.stream.receive()
        except TransferError as error:
            self._end_stream(sink, str(error))
        except WireError as error:
            self.lose_sink(sink, str(error))
        else:
            self.flush_stream(sink)

    def _end_stream(self, sink: ConnectedSink, why: str) -> None:
        """A stream has ended: its sink may open another, for a moment."""
        self._drop_stream(sink)
        sink.stream_end = why
        self._deadlines.set(sink, now_s=self._clock(), remaining_s=GRACE_S)

    def _drop_stream(self, sink: ConnectedSink) -> None:
        if sink.stream is not None:
            self._poller.forget(sink.stream.fileno())
            del self._streams[sink.stream.fileno()]
            sink.stream.close()
            sink.stream = None

    def _close_connection(self, connection: _Connection) -> None:
        self._deadlines.drop(connection)
        del self._connections[connection.sock.fileno()]
        self._poller.forget(connection.sock.fileno())
        close_fds(connection.reader.fds)
        connection.sock.close()
