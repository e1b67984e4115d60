"""All of a sink's fetches and links, on the sink's thread: facts in, what their states ask for out.

Owns each fetch from `start_fetch` until its end has been told, and each link until it is lost.
Knows no locks: nothing here may be called from a second thread.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Final, assert_never

from kvtransfer.deadlines import Deadlines
from kvtransfer.endings import Aborted, Landed
from kvtransfer.messages import (
    NO_LEASE,
    Borrow,
    Cancel,
    FailureCode,
    FetchBlocks,
    FetchFailed,
    FetchId,
    Lent,
    Release,
    Renewed,
)
from kvtransfer.sink.events import AskedAgain
from kvtransfer.sink.fetch import (
    End,
    FetchStage,
    FetchStep,
    SendBorrow,
    SendCancel,
    SendFetch,
    SendRelease,
)
from kvtransfer.sink.link import Link, LinkStage, broken
from kvtransfer.sink.loan import accept_loan, borrow_message
from kvtransfer.sink.means import SinkMeans
from kvtransfer.sink.receiver import Receiver
from kvtransfer.sink.running_fetch import RunningFetch
from kvtransfer.transports.base import SinkStream
from kvtransfer.transports.control import ControlContext, Poller
from protocol.errors import (
    CorruptBlock,
    LayoutMismatch,
    LeaseExpired,
    NotLent,
    PeerLost,
    TransferError,
    WireError,
)
from protocol.ids import Epoch
from protocol.messages import Ticket

log = logging.getLogger(__name__)

_QUARANTINE_POLL_S: Final = 0.05
"""How often a stream that could not be closed is tried again."""
_CLOSE_S: Final = 1.0
_CLOSE_POLL_S: Final = 0.001
_ERRORS: Final[dict[FailureCode, type[TransferError]]] = {
    "lease_expired": LeaseExpired,
    "mismatch": LayoutMismatch,
    "failed": TransferError,
    "refused": TransferError,
    "closed": PeerLost,
}


class FetchTable:
    """Those of one sink, by their ids."""

    def __init__(self, means: SinkMeans, *, poller: Poller) -> None:
        self._means = means
        self._poller = poller
        self._context = ControlContext()
        self._running: dict[FetchId, RunningFetch] = {}
        self._deadlines: Deadlines[FetchId] = Deadlines()
        self._waiting: dict[FetchId, RunningFetch] = {}
        """Those whose link is not open yet."""
        self._links: dict[tuple[str, Epoch], Link] = {}
        self._receivers: dict[Link, Receiver] = {}
        """Each link's, as long as it is not lost."""
        self._closing: list[tuple[SinkStream, Receiver]] = []
        """Broken streams whose writers have not stopped yet."""

    def start_fetch(self, running: RunningFetch) -> None:
        """It ends by itself, whatever happens."""
        fetch, ticket = running.fetch, running.ticket
        self._running[fetch.id] = self._waiting[fetch.id] = running
        self._deadlines.set(fetch.id, now_s=0.0, remaining_s=running.deadline_s)
        try:
            running.link = self._link(ticket)
        except (TransferError, WireError) as error:
            self._follow(running, fetch.fail(broken(error)))
            return
        if isinstance(running.plan, LayoutMismatch):
            self._follow(running, fetch.fail(running.plan))
        elif ticket.compat != self._means.compat:
            mismatch = LayoutMismatch(f"{ticket.worker} serves another model")
            self._follow(running, fetch.fail(mismatch))

    def cancel_fetch(self, fetch_id: FetchId, reason: str) -> None:
        running = self._running.get(fetch_id)
        if running is not None:
            self._follow(running, running.fetch.cancel(reason))

    def hold_lease(self, ticket: Ticket) -> None:
        """Renew a lease from now on."""
        try:
            self._link(ticket).renew_at_s = self._means.clock()
        except (TransferError, WireError) as error:
            remedy = "none, its fetch tries again; if it comes often raise the limit of open files"
            told = {"source": ticket.worker, "why": str(error), "remedy": remedy}
            log.warning("a lease cannot be held", extra=told)

    def drop_lease(self, ticket: Ticket, reason: str) -> None:
        """Give a lease back that was not fetched."""
        try:
            link = self._link(ticket)
            link.leases.discard(ticket.lease)
            link.send(Cancel(lease=ticket.lease, reason=reason[:2_000]))
        except (TransferError, WireError) as error:
            log.warning("a lease is left to expire", extra={"why": str(error)})

    def run_turn(self, ready: set[int]) -> None:
        """Take in what the links have, and end what is late."""
        for key, link in list(self._links.items()):
            try:
                link.receive_control(ready)
                stream = link.receive_stream(self._receivers[link], ready)
                if stream is not None:
                    self._attach_again(link, stream)
                self._tend(link)
            except (TransferError, WireError) as error:
                self._lose(key, broken(error))
        now_s = self._means.clock()
        for late in self._deadlines.expired(now_s):
            running = self._running[late]
            waited_s = now_s - running.started_s
            why = f"not landed within {waited_s:.3f} s, still {running.fetch.stage}"
            self._follow(running, running.fetch.fail(TransferError(why)))
        self._close_streams()

    def sleep_s(self, longest_s: float) -> float:
        """How long nothing needs to be done unless something comes."""
        if any(link.has_more for link in self._links.values()):
            return 0.0
        now_s = self._means.clock()
        waits = [min(longest_s, _QUARANTINE_POLL_S) if self._closing else longest_s]
        if (next_s := self._deadlines.next_in_s(now_s)) is not None:
            waits.append(next_s)
        for link in self._links.values():
            if link.stage is not LinkStage.OPEN:
                waits.append(max(0.0, link.open_by_s - now_s))
            elif link.leases:
                waits.append(max(0.0, link.renew_at_s - now_s))
        return min(waits)

    def close(self) -> None:
        for running in list(self._running.values()):
            self._end_at_close(running)
        for link in self._links.values():
            self._close_link(link)
        self._links.clear()
        self._await_writers()
        self._context.close()

    def _end_at_close(self, running: RunningFetch) -> None:
        """Its end is told even when a fault of ours, the reason to close, spoilt its state."""
        try:
            self._follow(running, running.fetch.cancel("the sink closes"))
        except Exception:
            log.exception("a fetch could not be ended in order")
            if self._running.pop(running.fetch.id, None) is not None:
                slots = tuple(running.fetch.slots_S.tolist())
                running.on_end(Aborted("the sink closes", quarantined=slots))

    def _await_writers(self) -> None:
        """Those that cannot be stopped at once get a moment: the memory goes when we are gone."""
        deadline_s = time.monotonic() + _CLOSE_S
        while self._closing and time.monotonic() < deadline_s:
            self._close_streams()
            time.sleep(_CLOSE_POLL_S)
        if self._closing:
            log.error("streams still write into the pool", extra={"streams": len(self._closing)})

    # -- links ----------------------------------------------------------------------------

    def _link(self, ticket: Ticket) -> Link:
        """The link to the ticket's source, made if need be, and now renewing its lease."""
        key = (ticket.address, ticket.epoch)
        if key not in self._links:
            link = self._links[key] = Link(
                self._means, ticket, context=self._context, poller=self._poller,
                on_answer=self._receive_answer,
            )  # fmt: skip
            self._receivers[link] = self._receiver_of(link)
        link = self._links[key]
        link.keep_lease(ticket.lease)
        return link

    def _receiver_of(self, link: Link) -> Receiver:
        find = partial(self._find, link)
        return Receiver(self._means, source=link.source, find=find, follow=self._follow)

    def _tend(self, link: Link) -> None:
        """Renew its leases, ask for what waits on it, and notice its silence."""
        link.renew_leases()
        if link.stage is not LinkStage.OPEN or not self._waiting:
            return
        for running in [x for x in self._waiting.values() if x.link is link]:
            del self._waiting[running.fetch.id]
            self._follow(running, running.fetch.start())

    def _lose(self, key: tuple[str, Epoch], error: TransferError) -> None:
        link = self._links.pop(key)
        remedy = "none if that worker was stopped; else see its log, and the network between"
        told = {"source": link.source, "why": str(error), "remedy": remedy}
        log.warning("link lost", extra=told)
        self._close_link(link)
        for running in self._fetches_of(link):
            self._follow(running, running.fetch.fail(error))

    def _close_link(self, link: Link) -> None:
        stream, receiver = link.lose(), self._receivers.pop(link)
        if stream is not None and not _close_stream(stream, receiver):
            self._closing.append((stream, receiver))

    def _close_streams(self) -> None:
        self._closing = [(s, r) for s, r in self._closing if not _close_stream(s, r)]

    def _attach_again(self, link: Link, stream: SinkStream) -> None:
        """A stream broke: what it carried is asked for once more over the link's next one, except
        into slots whose writer cannot be stopped."""
        receiver = self._receivers[link]
        if not _close_stream(stream, receiver):
            self._closing.append((stream, receiver))
            for running in [x for x in self._fetches_of(link) if x.fetch.num_writing]:
                error = PeerLost("its writer cannot be stopped")
                self._follow(running, running.fetch.fail(error))
            self._receivers[link] = self._receiver_of(link)
        for running in self._fetches_of(link):
            self._waiting[running.fetch.id] = running
        link.attach_again()

    def _receive_answer(self, link: Link, message: FetchFailed | Renewed | Lent) -> None:
        match message:
            case Renewed():
                self._end_unrenewed(link, message)
            case Lent():
                self._receive_loan(link, message)
            case FetchFailed():
                self._receive_failure(link, message)
            case _:
                assert_never(message)

    def _receive_loan(self, link: Link, lent: Lent) -> None:
        """Fetch what is lent, or give it back where nobody waits for it any more."""
        running = self._find(link, FetchId(lent.fetch))
        if running is None or running.fetch.stage is not FetchStage.ASKING:
            if lent.lease != NO_LEASE and lent.lease not in link.leases:
                link.send(Cancel(lease=lent.lease, reason="it came too late"))
            return
        try:
            accept_loan(running, lent, layout=self._means.layout)
        except (NotLent, CorruptBlock) as error:
            if lent.lease != NO_LEASE:
                link.send(Cancel(lease=lent.lease, reason=str(error)))
            self._follow(running, running.fetch.fail(error))
            return
        link.keep_lease(lent.lease)
        self._waiting[running.fetch.id] = running

    def _receive_failure(self, link: Link, message: FetchFailed) -> None:
        running = self._find(link, FetchId(message.fetch))
        if running is None:
            return
        if message.attempt >= running.fetch.attempt:  # asked again, it has an answer of its own
            error = _ERRORS[message.code](message.reason)
            self._follow(running, running.fetch.fail(error))

    def _end_unrenewed(self, link: Link, message: Renewed) -> None:
        """End the fetches whose leases are gone."""
        gone = {end.lease: end for end in message.gone}
        link.leases.difference_update(gone)
        if not gone:
            return
        for running in self._fetches_of(link):
            if end := gone.get(running.ticket.lease):
                self._follow(running, running.fetch.fail(_ERRORS[end.code](end.reason)))

    # -- fetches --------------------------------------------------------------------------

    def _fetches_of(self, link: Link) -> list[RunningFetch]:
        return [running for running in self._running.values() if running.link is link]

    def _find(self, link: Link, fetch_id: FetchId) -> RunningFetch | None:
        """A running fetch of this link."""
        running = self._running.get(fetch_id)
        return None if running is None or running.link is not link else running

    def _follow(self, running: RunningFetch, steps: Sequence[FetchStep]) -> None:
        """Carry out what a fetch's states ask for."""
        fetch = running.fetch
        for step in steps:
            match step:
                case SendBorrow():
                    self._send(running, borrow_message(running))
                case SendFetch():
                    if step.attempt > 1:
                        event = AskedAgain(source=running.ticket.worker, attempt=step.attempt)
                        self._means.report_event(event)
                    self._send(running, self._message(running, step))
                case SendRelease():
                    self._send(running, Release(lease=running.ticket.lease))
                case SendCancel(reason=reason):
                    lease = running.ticket.lease
                    self._send(running, Cancel(lease=lease, reason=reason[:2_000]))
                case End():
                    self._end(running)
                case _:
                    assert_never(step)
        if fetch.is_over and not fetch.ended:
            self._stop_writers(running)

    def _stop_writers(self, running: RunningFetch) -> None:
        """Stop whoever writes into its slots; those of one who goes on are quarantined."""
        link = running.link
        assert link is not None
        stream = link.stream
        if stream is not None and stream.stop_writing(running.fetch.id):
            self._receivers[link].stop_writes(running.fetch.id)
        self._follow(running, running.fetch.abandon())

    def _message(self, running: RunningFetch, step: SendFetch) -> FetchBlocks:
        fetch, heads = running.fetch, running.heads
        return FetchBlocks(
            fetch=fetch.id, attempt=step.attempt, lease=running.ticket.lease,
            compat=self._means.compat, layout=self._means.layout,
            heads=None if heads is None else (heads.start, heads.stop),
            indices=step.indices.tobytes(), slots=step.slots.tobytes(),
        )  # fmt: skip

    def _send(
        self, running: RunningFetch, message: Borrow | FetchBlocks | Release | Cancel
    ) -> None:
        """Tell the source, unless its link is lost: then it knows, or its lease runs out."""
        if running.link is None or running.link.stage is LinkStage.LOST:
            return
        try:
            running.link.send(message)
        except PeerLost as error:
            log.warning(
                "a message to the source was lost: its lease runs out", extra={"why": str(error)}
            )

    def _end(self, running: RunningFetch) -> None:
        fetch = running.fetch
        del self._running[fetch.id]
        self._waiting.pop(fetch.id, None)
        self._deadlines.drop(fetch.id)
        if running.link is not None:
            running.link.leases.discard(running.ticket.lease)
        end = running.outcome(now_s=self._means.clock())
        if isinstance(end, Landed):
            assert running.link is not None
            running.link.num_breaks = 0
        try:
            running.on_end(end)
        except Exception:
            log.exception("the owner of a fetch failed at its end")


def _close_stream(stream: SinkStream, receiver: Receiver) -> bool:
    """True when nobody writes by this stream any more, and it is closed."""
    if not stream.close():
        return False
    receiver.stop_writes()
    return True
