"""One sink's link to one source incarnation: a control socket, and the best stream to be had.

Comes up by itself (dialling, attaching, open), tries the transports in the configured order and
says which it took and why not an earlier one. When its stream breaks it attaches again within a
short grace; when anything else breaks it is lost, for good: a later fetch makes a new one.
"""

import logging
import secrets
from collections.abc import Callable
from enum import StrEnum
from typing import Final, assert_never

from kvtransfer.deadlines import renew_every_s
from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_RENEWED,
    NO_LEASE,
    FetchFailed,
    Lent,
    Open,
    Opened,
    Refused,
    Renew,
    Renewed,
    SessionId,
    StreamHello,
    ToSource,
)
from kvtransfer.sink.events import LinkRefused, LinkUp
from kvtransfer.sink.means import SinkMeans
from kvtransfer.transports import planes
from kvtransfer.transports.base import ChunkTaker, DialOptions, SinkStream, Unreachable
from kvtransfer.transports.control import ControlContext, Poller
from kvtransfer.transports.dial import Dial
from protocol.errors import LayoutMismatch, PeerLost, TransferError, WireError
from protocol.ids import LeaseId
from protocol.messages import Ticket
from protocol.state_table import StateTable

log = logging.getLogger(__name__)

OPEN_S = 3.0
"""From the first fetch to an open stream. Two local round trips; a dead host shows here."""
REOPEN_S = 0.4
"""From a stream's end to the next: within the grace that the source gives."""
MAX_BREAKS = 3
"""Streams of one link that may end in a row, with no fetch landed in between."""


class LinkStage(StrEnum):
    DIALLING = "dialling"
    """`Open` is sent."""
    ATTACHING = "attaching"
    """The source answered; a stream is on its way up."""
    OPEN = "open"
    LOST = "lost"


class LinkEvent(StrEnum):
    ANSWERED = "answered"
    """The source said `Opened`."""
    STREAM_UP = "stream up"
    STREAM_ENDED = "stream ended"
    BROKE = "broke"
    """Anything else ended, was late or made no sense; or the sink closes."""


_K, _KE = LinkStage, LinkEvent
LINK_STATES: Final = StateTable(
    {
        (_K.DIALLING, _KE.ANSWERED): _K.ATTACHING,
        (_K.DIALLING, _KE.BROKE): _K.LOST,
        (_K.ATTACHING, _KE.STREAM_UP): _K.OPEN,
        (_K.ATTACHING, _KE.BROKE): _K.LOST,
        (_K.OPEN, _KE.STREAM_ENDED): _K.ATTACHING,
        (_K.OPEN, _KE.BROKE): _K.LOST,
    }
)


class Link:
    """Raises TransferError from any method when the link breaks; then call `lose`."""

    def __init__(
        self, means: SinkMeans, ticket: Ticket, *, context: ControlContext, poller: Poller,
        on_answer: Callable[["Link", FetchFailed | Renewed | Lent], None],
    ) -> None:  # fmt: skip
        self._life = LINK_STATES.begin(LinkStage.DIALLING, name=f"link to {ticket.worker}")
        self.source = ticket.worker
        self.stream: SinkStream | None = None
        self.num_breaks = 0
        """Streams that ended since the last fetch landed."""
        self.why = ""
        """Why this transport and not an earlier one."""
        self.leases: set[LeaseId] = set()
        """Those to renew."""
        self.renew_at_s = self._heard_s = means.clock()
        self.open_by_s = self._heard_s + OPEN_S
        self._means = means
        self._ticket = ticket
        self._poller = poller
        self._untried = list(means.transports)
        self._on_answer = on_answer
        self._session = SessionId(secrets.randbits(63))
        self._dial: Dial | None = None
        self._opened: Opened | None = None
        self._missed: list[tuple[str, str]] = []
        """Transports that cannot be used now, and why."""
        self._broke = ""
        """How the last stream ended."""
        self.has_more = False
        """The stream has more to do without waiting."""
        self._control = context.connect(ticket.address)
        self._number = self._control.number
        poller.watch(self._control)
        self.send(Open(session=self._session, worker=means.worker, epoch=ticket.epoch))

    @property
    def stage(self) -> LinkStage:
        return self._life.state

    def send(self, message: ToSource) -> None:
        self._control.send(message)

    def keep_lease(self, lease: LeaseId) -> None:
        """Renew this lease from now on; NO_LEASE is none."""
        if lease == NO_LEASE:
            return
        if not self.leases:
            self._heard_s = self._means.clock()
        self.leases.add(lease)

    def renew_leases(self) -> None:
        """Renew all leases of this link in one message, if it is time. Raises PeerLost when the
        link does not come up, or its renewals stay unanswered."""
        now_s, ttl_s = self._means.clock(), self._means.lease_ttl_s
        if self.stage is not LinkStage.OPEN and now_s > self.open_by_s:
            raise PeerLost(f"no stream to {self.source} came up: still {self.stage}")
        if self.leases and now_s - self._heard_s > ttl_s:
            raise PeerLost(f"{self.source} has been silent for {now_s - self._heard_s:.1f} s")
        if now_s < self.renew_at_s or not self.leases or self._opened is None:
            return
        self.renew_at_s = now_s + renew_every_s(ttl_s)
        leases = tuple(self.leases)
        for first in range(0, len(leases), MAX_RENEWED):
            some = leases[first : first + MAX_RENEWED]
            self.send(Renew(leases=some, remaining_s=ttl_s))

    def receive_control(self, ready: set[int]) -> None:
        """Take in what the control socket and the descriptors in `ready` have."""
        heard = self._control.receive() if self._number in ready else ()
        for message in heard:
            self._heard_s = self._means.clock()
            match message:
                case Opened():
                    self._attach(message)
                case Refused(reason=reason):
                    raise PeerLost(f"the source refused the link: {reason}")
                case FetchFailed() | Renewed() | Lent():
                    self._on_answer(self, message)
                case _:
                    assert_never(message)
        if self._dial is not None and self._dial.fileno() in ready:
            self._advance()

    def receive_stream(self, taker: ChunkTaker, ready: set[int]) -> SinkStream | None:
        """Take in what the stream has; the stream, to close before `attach_again`, if it broke."""
        stream = self.stream
        if stream is None or not (self.has_more or stream.fileno() in ready):
            return None
        self._heard_s = self._means.clock()
        try:
            self.has_more = stream.receive(taker)
        except PeerLost as error:
            self._broke = f"{stream.transport} broke: {error}"
            return self._take_stream()
        return None

    def attach_again(self) -> None:
        """Go on after a stream's end. Raises PeerLost when that was tried enough."""
        self.num_breaks += 1
        if self.num_breaks >= MAX_BREAKS:
            raise PeerLost(f"{self.num_breaks} streams broke; the last: {self._broke}")
        remedy = "none, it is opened again; if it comes often see the source's log"
        told = {"source": self.source, "why": self._broke, "remedy": remedy}
        log.warning("stream broke", extra=told)
        self._life.move(LinkEvent.STREAM_ENDED)
        self.open_by_s = self._means.clock() + REOPEN_S
        self._untried, self._missed = list(self._means.transports), []
        self._try_next()

    def lose(self) -> SinkStream | None:
        """Close everything but the stream, which the caller closes."""
        self._life.move(LinkEvent.BROKE)
        self._drop_dial()
        stream = self._take_stream()
        self._poller.forget(self._control)
        self._control.close()
        return stream

    def _take_stream(self) -> SinkStream | None:
        stream, self.stream, self.has_more = self.stream, None, False
        if stream is not None:
            self._poller.forget(stream.fileno())
        return stream

    def _attach(self, opened: Opened) -> None:
        if self.stage is not LinkStage.DIALLING or opened.epoch != self._ticket.epoch:
            raise WireError("the source opened the link twice, or another epoch's")
        self._life.move(LinkEvent.ANSWERED)
        self._opened = opened
        self._try_next()

    def _try_next(self) -> None:
        """Start on the first transport left that can be reached at all."""
        while self._untried:
            if self._missed and not self._means.allow_fallback:
                self._report_refused()
                raise LayoutMismatch(f"no fallback allowed; {'; '.join(self._reasons())}")
            name = self._untried.pop(0)
            try:
                dial = self._dial_to(name)
            except Unreachable as error:
                self._missed.append((name, str(error)))
                continue
            self._dial = dial
            self._poller.watch(dial.fileno(), writable=dial.writable)
            return
        self._report_refused()
        reasons = [self._broke, *self._reasons()] if self._broke else self._reasons()
        raise PeerLost(f"no transport reaches {self.source}: {'; '.join(reasons)}")

    def _report_refused(self) -> None:
        self._means.report_event(LinkRefused(source=self.source, missed=tuple(self._missed)))

    def _reasons(self) -> list[str]:
        return [f"not {name}: {why}" for name, why in self._missed]

    def _dial_to(self, name: str) -> Dial:
        assert self._opened is not None
        planes.check_here(name)
        address = next((p.address for p in self._opened.planes if p.transport == name), None)
        if address is None:
            raise Unreachable(f"the source does not serve {name}")
        memory = self._means.memory
        hello = StreamHello(
            version=CONTROL_VERSION, session=self._session, epoch=self._ticket.epoch,
            sum_kinds=memory.sum_kinds, block_bytes=memory.block_bytes,
        )  # fmt: skip
        options = DialOptions(address=address, hello=hello, tcp_lanes=self._means.tcp_lanes)
        return planes.dial(name, memory, options)

    def _advance(self) -> None:
        assert self._dial is not None
        dial, name = self._dial, self._dial.transport
        try:
            stream = dial.advance()
        except Unreachable as error:
            self._drop_dial()
            self._missed.append((name, str(error)))
            self._try_next()
            return
        if stream is None:
            self._poller.watch(dial.fileno(), writable=dial.writable)
            return
        self._life.move(LinkEvent.STREAM_UP)
        self._dial, self.stream = None, stream
        self._poller.forget(dial.fileno())  # the stream may be watched by another descriptor
        self._poller.watch(stream.fileno())
        reasons = [f"{name} reachable", *self._reasons()]
        self.why = "; ".join([*reasons, self._broke] if self._broke else reasons)
        level = logging.WARNING if self._missed else logging.INFO
        said = {"source": self.source, "transport": name, "why": self.why}
        log.log(level, "transport chosen", extra=said)
        self._means.report_event(
            LinkUp(source=self.source, transport=name, missed=tuple(self._missed))
        )

    def _drop_dial(self) -> None:
        if self._dial is not None:
            self._poller.forget(self._dial.fileno())
            self._dial.close()
            self._dial = None


def broken(error: TransferError | WireError) -> TransferError:
    """What a fetch is told when its link breaks."""
    return error if isinstance(error, TransferError) else PeerLost(f"link dropped: {error}")
