"""The sinks connected to one source: each has a control identity, a session and a stream.

A visitor says `Open` on the control link, then proves on a data stream that the session is its
own. When that stream ends it may open another within a short grace; after that the visitor is
gone, and so is everything it held. Knows nothing of leases beyond their ids.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvtransfer.deadlines import Deadlines
from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_HELLO_BYTES,
    Open,
    Opened,
    Refused,
    SessionId,
    StreamHello,
    StreamWelcome,
    ToSink,
    stream_hello,
)
from kvtransfer.transports.base import Listener, SourceStream
from kvtransfer.transports.control import ControlServer, Identity, Poller
from kvtransfer.transports.dial import send_welcome
from kvtransfer.transports.framing import FirstMessage, close_fds
from protocol.errors import PeerLost, WireError
from protocol.ids import LeaseId, WorkerId

log = logging.getLogger(__name__)

MAX_VISITORS = 1_024
_HELLO_S = 5.0
"""From `Open` to the stream's hello: a local round trip, or a far one on a bad day."""
_FULL_S = 0.1
"""Without descriptors, until we look again who knocks: they keep the socket readable."""
GRACE_S = 0.5
"""From a stream's end to the next one's hello. A sink that lives dials at once; one that was killed
keeps its leases this long."""


@dataclass(slots=True, eq=False)
class Visitor:
    """One sink, until it has been without a stream for too long."""

    identity: Identity
    session: SessionId
    worker: WorkerId
    stream: SourceStream | None = None
    leases: set[LeaseId] = field(default_factory=set)
    """Those it fetches or renews."""
    awaits_room: bool = False
    """The poller watches for room in the stream's socket."""
    parted: str = ""
    """How its last stream ended."""


@dataclass(slots=True, eq=False)
class _Arrival:
    """A connection whose hello is not here yet."""

    sock: socket.socket
    listener: Listener
    reader: FirstMessage


@dataclass(slots=True, eq=False)
class _Shut:
    """A listener that is not looked at, for want of descriptors."""

    listener: Listener


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
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
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
        self._hellos: Deadlines[Visitor | _Arrival | _Shut] = Deadlines()
        for fd in self._listeners:
            poller.watch(fd)

    def __len__(self) -> int:
        return len(self._visitors)

    def get(self, identity: Identity) -> Visitor | None:
        return self._visitors.get(identity)

    def next_in_s(self) -> float | None:
        return self._hellos.next_in_s(self._clock())

    def open(self, identity: Identity, word: Open) -> None:
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
            self._hellos.set(visitor, now_s=self._clock(), remaining_s=_HELLO_S)
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

    def look(self, ready: set[int]) -> None:
        """Take in what the descriptors in `ready` have, and let go of those who never came."""
        for fd in ready:
            if fd in self._listeners:
                self._accept(self._listeners[fd])
            elif fd in self._arrivals:
                self._greet(self._arrivals[fd])
            elif fd in self._streams:
                self._attend(self._streams[fd])
        for late in self._hellos.expired(self._clock()):
            if isinstance(late, Visitor):
                self.lose(late, late.parted or "it opened no stream")
            elif isinstance(late, _Arrival):
                self._turn_away(late)
            else:
                self._hellos.drop(late)
                self._poller.watch(late.listener.fileno())

    def flush(self, visitor: Visitor) -> None:
        """Send what the visitor's stream has queued, and watch for room if that is not all."""
        stream = visitor.stream
        if stream is None:
            return
        try:
            stream.flush()
        except PeerLost as error:
            self._part(visitor, str(error))
            return
        if visitor.awaits_room != stream.awaits_room:
            visitor.awaits_room = stream.awaits_room
            self._poller.watch(stream.fileno(), writable=visitor.awaits_room)

    def lose(self, visitor: Visitor, why: str) -> None:
        """Forget a visitor and close its stream; tells `on_lost` once."""
        if self._visitors.pop(visitor.identity, None) is None:
            return
        del self._sessions[visitor.session]
        self._hellos.drop(visitor)
        self._drop_stream(visitor)
        self._on_lost(visitor, why)

    def close(self) -> None:
        for arrival in list(self._arrivals.values()):
            self._turn_away(arrival)
        for visitor in list(self._visitors.values()):
            self.lose(visitor, "the source closes")
        for fd, listener in self._listeners.items():
            self._poller.forget(fd)
            listener.close()

    def _accept(self, listener: Listener) -> None:
        try:
            self._accept_all(listener)
        except OSError as error:
            log.warning("a sink waits at the door", extra={"why": str(error)})
            self._poller.forget(listener.fileno())
            self._hellos.set(_Shut(listener), now_s=self._clock(), remaining_s=_FULL_S)

    def _accept_all(self, listener: Listener) -> None:
        while (sock := listener.accept()) is not None:
            if len(self._arrivals) >= MAX_VISITORS:
                sock.close()
                continue
            arrival = _Arrival(sock, listener, FirstMessage(MAX_HELLO_BYTES))
            self._arrivals[sock.fileno()] = arrival
            self._hellos.set(arrival, now_s=self._clock(), remaining_s=_HELLO_S)
            self._poller.watch(sock.fileno())

    def _greet(self, arrival: _Arrival) -> None:
        try:
            hello = arrival.reader.read(arrival.sock, stream_hello)
            if hello is None:
                return
            visitor = self._visitor_of(hello)
            self._let_in(visitor, arrival, hello)
        except (PeerLost, WireError, OSError):  # of the last: no descriptor for a stream
            self._turn_away(arrival)

    def _let_in(self, visitor: Visitor, arrival: _Arrival, hello: StreamHello) -> None:
        """Make the connection the visitor's stream, or a lane of it."""
        sock, fds = arrival.sock, arrival.reader.fds
        fd = sock.fileno()
        if hello.lane:
            assert visitor.stream is not None
            send_welcome(sock, self._welcome)
            visitor.stream.add_lane(sock, hello.lane)
        else:
            visitor.stream = arrival.listener.welcome(sock, self._welcome, hello, fds)
            visitor.awaits_room = False
            self._hellos.drop(visitor)
        del self._arrivals[fd]
        self._hellos.drop(arrival)
        close_fds(fds)
        self._poller.forget(fd)
        if not hello.lane:
            self._streams[visitor.stream.fileno()] = visitor
            self._poller.watch(visitor.stream.fileno())

    def _visitor_of(self, hello: StreamHello) -> Visitor:
        """Whose stream this is. Raises WireError when it cannot be one."""
        visitor = self._sessions.get(SessionId(hello.session))
        if visitor is None or (visitor.stream is None) != (hello.lane == 0):
            raise WireError("no such session waits for a stream")
        if hello.version != CONTROL_VERSION or hello.epoch != self._opened.epoch:
            raise WireError("another version or epoch")
        return visitor

    def _attend(self, visitor: Visitor) -> None:
        assert visitor.stream is not None
        try:
            visitor.stream.receive()
        except PeerLost as error:
            self._part(visitor, str(error))
        except WireError as error:
            self.lose(visitor, str(error))
        else:
            self.flush(visitor)

    def _part(self, visitor: Visitor, why: str) -> None:
        """A stream has ended: its sink may open another, for a moment."""
        self._drop_stream(visitor)
        visitor.parted = why
        self._hellos.set(visitor, now_s=self._clock(), remaining_s=GRACE_S)

    def _drop_stream(self, visitor: Visitor) -> None:
        if visitor.stream is not None:
            self._poller.forget(visitor.stream.fileno())
            del self._streams[visitor.stream.fileno()]
            visitor.stream.close()
            visitor.stream = None

    def _turn_away(self, arrival: _Arrival) -> None:
        self._hellos.drop(arrival)
        del self._arrivals[arrival.sock.fileno()]
        self._poller.forget(arrival.sock.fileno())
        close_fds(arrival.reader.fds)
        arrival.sock.close()
