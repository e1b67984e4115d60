"""What a data plane is: a stream between one source and one sink, and how it carries chunks.

A stream guarantees: its end of file means that the other process is gone or gave up, seen as
soon as the kernel knows; what it says of a chunk comes before what it says of the fetch's end;
it writes only where its taker let it, and says when it has stopped. It does not guarantee that
bytes are right (checksums do) or wanted (the fetch does), nor any order between chunks, between
streams, or between a stream and the control link. Errors are PeerLost (the other end is gone) and
WireError (it makes no sense); after either the stream is only closed.

Two ways of carrying: a *reading* stream tells the sink which pieces lie ready in the source's
memory, and the sink copies; on a *pushing* one the source sends bytes. A fetch sees no difference.
"""

import socket
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.messages import Chunk, FetchId, Finish, StreamHello, StreamWelcome
from kvtransfer.plan import Ranges
from protocol.errors import WireError
from protocol.ids import Epoch

HelpCopy = Literal["auto", "always", "never"]
"""Whether a source copies along with a sink of its host. Auto: when the machine has fewer runnable
threads than cores."""


class Unreachable(Exception):
    """This data plane cannot be used between these two processes; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """How a source listens, on any plane."""

    host: str
    """The address on which planes over TCP listen."""
    port: int = 0
    """Of a plane over TCP. 0: a free one."""
    epoch: Epoch
    help_copy: HelpCopy = "auto"
    socket_folder: str = ""
    """Where planes of a host have their sockets; they are abstract without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DialOptions:
    """How a sink dials a source, on any plane."""

    address: str
    """What the source's `Listener.address` says."""
    hello: StreamHello
    """Without the plane's own setup."""
    tcp_lanes: int = 0
    """Connections of a TCP stream; 0: as many as suit the way."""


class ChunkTaker(Protocol):
    """What a stream hands its chunks to: the sink's fetches."""

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        """Where its bytes go, which then have a writer; None to discard them. Raises WireError
        for what cannot be a chunk."""

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        """Its writer has stopped. `sums_P` are the checksums of the landed bytes; without them
        none is to be used, and `broken` says why."""

    def finished(self, message: Finish) -> None:
        """The source has sent all that this fetch asked for."""


class SinkStream(Protocol):
    """The fetcher's end of an open stream."""

    transport: str

    def fileno(self) -> int:
        """Readable when `receive` has something to do."""

    def receive(self, taker: ChunkTaker) -> bool:
        """Take what has come, a bounded part of it; True when there is more to do at once.
        Raises PeerLost or WireError."""

    def stop_writing(self, fetch: FetchId) -> bool:
        """True: nothing of this fetch is written into any slot from now on, and its open chunks
        have been ended. False: a writer cannot be stopped now; `receive` ends its chunk later."""

    def close(self) -> bool:
        """Give everything back; answers as `stop_writing`, for all fetches. Idempotent; while it
        is False the owner goes on calling it."""


class SourceStream(Protocol):
    """The source's end of an open stream."""

    transport: str
    chunk_bytes: int
    """Most bytes it likes in one chunk."""

    @property
    def queued_bytes(self) -> int:
        """Offered and not yet sent; what a source goes by to offer more."""

    @property
    def awaits_room(self) -> bool:
        """`flush` could not send everything: call it again when `fileno` can be written. Never
        where `fileno` is a poller's, which waits for room itself."""
        return False

    def fileno(self) -> int: ...

    def receive(self) -> None:
        """Take in what the sink says here. Raises PeerLost at its end, WireError for nonsense."""

    def add_lane(self, sock: socket.socket, lane: int) -> None:
        """A further socket of this stream, welcomed already. Raises WireError when unwanted."""
        raise WireError(f"{self.transport} has one socket")

    def offer(self, chunk: Chunk, ranges: Ranges) -> None:
        """These pieces are written at these ranges of our pool: announce or send them. They are
        read until sent, or until `drop`."""

    def finish(self, message: Finish) -> None:
        """Say this after everything offered before."""

    def flush(self) -> None:
        """Send what can be sent now. Raises PeerLost."""

    def drop(self, fetch: FetchId) -> None:
        """From now on nothing of this fetch is read from our pool."""

    def close(self) -> None: ...


class Listener(Protocol):
    """Where sinks' streams arrive, at the source."""

    transport: str
    address: str
    """What `Opened` says of it."""

    def fileno(self) -> int: ...

    def accept(self) -> socket.socket | None:
        """A new connection, non-blocking, its process checked; None when there is none. Raises
        OSError without a descriptor for it."""

    def welcome(
        self, sock: socket.socket, welcome: StreamWelcome, hello: StreamHello, fds: list[int]
    ) -> SourceStream:
        """Turn a connection whose hello was right into a stream; takes what it keeps of the
        hello's `fds` out of the list. Raises PeerLost or WireError; Unreachable, having said
        nothing to the sink, when it can have none here."""

    def close(self) -> None: ...
