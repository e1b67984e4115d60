"""The sinks connected to one source: each has a control identity, a session and a stream.

Called by `kvtransfer.source` from its thread. A visitor says `Open` on the control link, then
proves on a data stream that the session is its own; when that stream ends the visitor is gone,
and so is everything it held. Knows nothing of leases beyond their ids.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_STREAM_WORD_BYTES,
    Open,
    Opened,
    Refused,
    SessionId,
    StreamWelcome,
    ToSink,
    stream_hello,
)
from kvtransfer.transports.base import Listener, SourceStream, WordReader, close_fds
from kvtransfer.transports.control import ControlServer, Identity, Poller
from protocol.errors import PeerLost, WireError
from protocol.ids import LeaseId, WorkerId
from protocol.lease import Deadlines

MAX_VISITORS = 1_024
_HELLO_S = 5.0
"""From `Open` to the stream's hello: a local round trip, or a far one on a bad day."""


@dataclass(slots=True, eq=False)
class Visitor:
    """One sink, until its stream ends."""

    identity: Identity
    session: SessionId
    worker: WorkerId
    stream: SourceStream | None = None
    leases: set[LeaseId] = field(default_factory=set)
    """Those it fetches or renews."""
    awaits_room: bool = False
    """The poller watches for room in the stream's socket."""


@dataclass(slots=True, eq=False)
class _Arrival:
    """A connection whose hello is not here yet."""

    sock: socket.socket
    listener: Listener
    reader: WordReader


class Visitors:
    def __init__(
        self,
        *,
        control: ControlServer,
        listeners: Sequence[Listener],
        poller: Poller,
        opened: Opened,
        welcome: StreamWelcome,
        on_lost: Callable[[Visitor, str], None],
    ) -> None:
        self._control = control
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._poller = poller
        self._opened = opened
        self._welcome = welcome
        self._on_lost = on_lost
        self._visitors: dict[Identity, Visitor] = {}
        self._sessions: dict[SessionId, Visitor] = {}
        self._streams: dict[int, Visitor] = {}
        self._arrivals: dict[int, _Arrival] = {}
        self._hellos: Deadlines[Visitor | _Arrival] = Deadlines()
        for fd in self._listeners:
            poller.watch(fd)

    def __len__(self) -> int:
        return len(self._visitors)

    def get(self, identity: Identity) -> Visitor | None:
        return self._visitors.get(identity)

    def next_in_s(self, now_s: float) -> float | None:
        return self._hellos.next_in_s(now_s)

    def open(self, identity: Identity, word: Open, *, now_s: float) -> None:
        """Answer a sink's first message."""
        if word.epoch != self._opened.epoch:
            self.refuse(identity, Refused(code="epoch", reason="the source has been restarted"))
        elif identity in self._visitors or word.session in self._sessions:
            self.refuse(identity, Refused(code="protocol", reason="opened twice"))
        elif len(self._visitors) >= MAX_VISITORS:
            self.refuse(identity, Refused(code="protocol", reason="too many sinks"))
        else:
            visitor = Visitor(identity, SessionId(word.session), word.worker)
            self._visitors[identity] = self._sessions[visitor.session] = visitor
            self._hellos.set(visitor, now_s=now_s, remaining_s=_HELLO_S)
            self.send(visitor, self._opened)

    def refuse(self, identity: Identity, word: Refused) -> None:
        """Tell a sink why its link cannot work, and forget it."""
        self._control.send(identity, word)
        visitor = self._visitors.get(identity)
        if visitor is not None:
            self.lose(visitor, word.reason)

    def send(self, visitor: Visitor, message: ToSink) -> None:
        """A sink that cannot be told anything is lost."""
        if not self._control.send(visitor.identity, message):
            self.lose(visitor, "its control link is gone or full")

    def look(self, ready: set[int], *, now_s: float) -> None:
        """Take in what the descriptors in `ready` have, and let go of those who never came."""
        for fd in ready:
            if fd in self._listeners:
                self._accept(self._listeners[fd], now_s)
            elif fd in self._arrivals:
                self._greet(self._arrivals[fd])
            elif fd in self._streams:
                self._attend(self._streams[fd])
        for late in self._hellos.expired(now_s):
            if isinstance(late, Visitor):
                self.lose(late, "it opened no stream")
            else:
                self._turn_away(late)

    def flush(self, visitor: Visitor) -> None:
        """Send what the visitor's stream has queued, and watch for room if that is not all."""
        stream = visitor.stream
        if stream is None:
            return
        try:
            stream.flush()
        except PeerLost as error:
            self.lose(visitor, str(error))
            return
        if visitor.awaits_room != bool(stream.queued_bytes):
            visitor.awaits_room = not visitor.awaits_room
            self._poller.watch(stream.fileno(), writable=visitor.awaits_room)

    def lose(self, visitor: Visitor, why: str) -> None:
        """Forget a visitor and close its stream; tells `on_lost` once."""
        if self._visitors.pop(visitor.identity, None) is None:
            return
        del self._sessions[visitor.session]
        self._hellos.drop(visitor)
        if visitor.stream is not None:
            self._poller.forget(visitor.stream.fileno())
            del self._streams[visitor.stream.fileno()]
            visitor.stream.close()
        self._on_lost(visitor, why)

    def close(self) -> None:
        for arrival in list(self._arrivals.values()):
            self._turn_away(arrival)
        for visitor in list(self._visitors.values()):
            self.lose(visitor, "the source closes")
        for fd, listener in self._listeners.items():
            self._poller.forget(fd)
            listener.close()

    def _accept(self, listener: Listener, now_s: float) -> None:
        while (sock := listener.accept()) is not None:
            if len(self._arrivals) >= MAX_VISITORS:
                sock.close()
                continue
            arrival = _Arrival(sock, listener, WordReader(MAX_STREAM_WORD_BYTES))
            self._arrivals[sock.fileno()] = arrival
            self._hellos.set(arrival, now_s=now_s, remaining_s=_HELLO_S)
            self._poller.watch(sock.fileno())

    def _greet(self, arrival: _Arrival) -> None:
        try:
            hello = arrival.reader.read(arrival.sock, stream_hello)
            if hello is None:
                return
            visitor = self._sessions.get(SessionId(hello.session))
            if visitor is None or visitor.stream is not None:
                raise WireError("no such session waits for a stream")
            if hello.version != CONTROL_VERSION or hello.epoch != self._opened.epoch:
                raise WireError("another version or epoch")
            if hello.block_bytes != self._welcome.block_bytes:
                raise WireError(f"its blocks have {hello.block_bytes} bytes")
            stream = arrival.listener.welcome(arrival.sock, self._welcome)
        except (PeerLost, WireError):
            self._turn_away(arrival)
            return
        del self._arrivals[arrival.sock.fileno()]
        self._hellos.drop(arrival)
        self._hellos.drop(visitor)
        close_fds(arrival.reader.fds)
        visitor.stream = stream
        self._streams[stream.fileno()] = visitor

    def _attend(self, visitor: Visitor) -> None:
        assert visitor.stream is not None
        try:
            visitor.stream.receive()
        except (PeerLost, WireError) as error:
            self.lose(visitor, str(error))
            return
        self.flush(visitor)

    def _turn_away(self, arrival: _Arrival) -> None:
        self._hellos.drop(arrival)
        del self._arrivals[arrival.sock.fileno()]
        self._poller.forget(arrival.sock.fileno())
        close_fds(arrival.reader.fds)
        arrival.sock.close()
