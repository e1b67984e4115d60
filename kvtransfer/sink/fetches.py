"""All of a sink's fetches and links, on the sink's thread: facts in, table steps carried out.

Owns each fetch from `begin` until its end has been told, and each link until it is lost. Knows no
locks: nothing here is called from a second thread.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final, assert_never

from kvtransfer.deadlines import Deadlines, renew_every_s
from kvtransfer.endings import Aborted, Landed
from kvtransfer.messages import (
    Cancel,
    FailureCode,
    Fetch,
    FetchFailed,
    FetchId,
    Finish,
    Release,
    Renewed,
)
from kvtransfer.sink import fetch as session
from kvtransfer.sink.events import AskedAgain, Notice, Rejected
from kvtransfer.sink.link import Link, LinkStage, broken
from kvtransfer.sink.means import Means
from kvtransfer.sink.receiver import Receiver, Receiving
from kvtransfer.sink.running_fetch import Active
from kvtransfer.transports.base import SinkStream
from kvtransfer.transports.control import ControlContext, Poller
from protocol.errors import LayoutMismatch, LeaseExpired, PeerLost, TransferError, WireError
from protocol.ids import Epoch, WorkerId
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


class Fetcher:
    def __init__(self, means: Means, *, poller: Poller) -> None:
        self.used: Counter[str] = Counter()
        """Fetches landed, by transport."""
        self._means = means
        self._poller = poller
        self._context = ControlContext()
        self._active: dict[FetchId, Active] = {}
        self._deadlines: Deadlines[FetchId] = Deadlines()
        self._waiting: dict[FetchId, Active] = {}
        """Those whose link is not open yet."""
        self._links: dict[tuple[str, Epoch], Link] = {}
        self._closing: list[tuple[SinkStream, Receiver]] = []
        """Broken streams whose writers have not stopped yet."""

    def begin(self, active: Active) -> None:
        """Take up a fetch. It ends by itself, whatever happens."""
        fetch, ticket = active.fetch, active.ticket
        self._active[fetch.fetch] = self._waiting[fetch.fetch] = active
        self._deadlines.set(fetch.fetch, now_s=0.0, remaining_s=active.deadline_s)
        try:
            active.link = self._link(ticket)
        except (TransferError, WireError) as error:
            self.follow(active, fetch.fail(broken(error)))
            return
        if isinstance(active.way, LayoutMismatch):
            self.follow(active, fetch.fail(active.way))
        elif ticket.compat != self._means.compat:
            mismatch = LayoutMismatch(f"{ticket.worker} serves another model")
            self.follow(active, fetch.fail(mismatch))

    def cancel(self, fetch: FetchId, reason: str) -> None:
        active = self._active.get(fetch)
        if active is not None:
            self.follow(active, active.fetch.cancel(reason))

    def hold(self, ticket: Ticket) -> None:
        """Renew a lease from now on."""
        try:
            self._link(ticket).renew_at_s = self._means.clock()
        except (TransferError, WireError) as error:
            log.warning("a lease cannot be held", extra={"why": str(error)})

    def drop(self, ticket: Ticket, reason: str) -> None:
        """Give a lease back that was not fetched."""
        try:
            link = self._link(ticket)
            link.leases.discard(ticket.lease)
            link.say(Cancel(lease=ticket.lease, reason=reason[:2_000]))
        except (TransferError, WireError) as error:
            log.warning("a lease is left to expire", extra={"why": str(error)})

    def turn(self, ready: set[int]) -> None:
        """Take in what the links have, and end what is late."""
        for key, link in list(self._links.items()):
            try:
                link.look(ready, now_s=self._means.clock())
                stream = link.receive(ready, now_s=self._means.clock())
                if stream is not None:
                    self._mend(link, stream)
                self._tend(link)
            except (TransferError, WireError) as error:
                self._lose(key, broken(error))
        now_s = self._means.clock()
        for late in self._deadlines.expired(now_s):
            active = self._active[late]
            waited_s = now_s - active.started_s
            why = f"not landed within {waited_s:.3f} s, still {active.fetch.stage}"
            self.follow(active, active.fetch.fail(TransferError(why)))
        self._closing = [(s, r) for s, r in self._closing if not self._close_stream(s, r)]

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
        for active in list(self._active.values()):
            self._end_at_close(active)
        for link in self._links.values():
            self._let_go(link)
        self._links.clear()
        self._await_writers()
        self._context.close()

    def _end_at_close(self, active: Active) -> None:
        """Its end is told even when a fault of ours, the reason to close, spoilt its state."""
        try:
            self.follow(active, active.fetch.cancel("the sink closes"))
        except Exception:
            log.exception("a fetch could not be ended in order")
            if self._active.pop(active.fetch.fetch, None) is not None:
                slots = tuple(active.fetch.slots_S.tolist())
                active.on_end(Aborted("the sink closes", quarantined=slots))

    def _await_writers(self) -> None:
        """Those that cannot be stopped at once get a moment: the memory goes when we are gone."""
        deadline_s = time.monotonic() + _CLOSE_S
        while self._closing and time.monotonic() < deadline_s:
            self._closing = [(s, r) for s, r in self._closing if not self._close_stream(s, r)]
            time.sleep(_CLOSE_POLL_S)
        if self._closing:
            log.error("streams still write into the pool", extra={"streams": len(self._closing)})

    # -- links ----------------------------------------------------------------------------

    def _link(self, ticket: Ticket) -> Link:
        """The link to the ticket's source, made if need be, and now renewing its lease."""
        key = (ticket.address, ticket.epoch)
        if key not in self._links:
            means = self._means
            receiver = Receiver(
                means.memory, _FetchesOf(self, key, source=ticket.worker), clock=means.clock
            )
            self._links[key] = Link(
                ticket, worker=means.worker, context=self._context, poller=self._poller,
                transports=means.transports, allow_fallback=means.allow_fallback,
                tcp_lanes=means.tcp_lanes,
                memory=means.memory, receiver=receiver, on_word=self._hear,
                on_notice=self.notice, now_s=means.clock(),
            )  # fmt: skip
        link = self._links[key]
        link.keep(ticket.lease, now_s=self._means.clock())
        return link

    def _tend(self, link: Link) -> None:
        """Renew its leases, ask for what waits on it, and notice its silence."""
        ttl_s = self._means.lease_ttl_s
        now_s = self._means.clock()
        link.check(now_s=now_s, silence_s=ttl_s)
        link.renew(now_s=now_s, every_s=renew_every_s(ttl_s), remaining_s=ttl_s)
        if link.stage is not LinkStage.OPEN or not self._waiting:
            return
        for active in [a for a in self._waiting.values() if a.link is link]:
            del self._waiting[active.fetch.fetch]
            self.follow(active, active.fetch.start())

    def _lose(self, key: tuple[str, Epoch], error: TransferError) -> None:
        link = self._links.pop(key)
        log.warning("link lost", extra={"source": link.source, "why": str(error)})
        self._let_go(link)
        for active in self.on(link):
            self.follow(active, active.fetch.fail(error))

    def _let_go(self, link: Link) -> None:
        stream = link.lose()
        if stream is not None and not self._close_stream(stream, link.receiver):
            self._closing.append((stream, link.receiver))

    def _close_stream(self, stream: SinkStream, receiver: Receiver) -> bool:
        """True when nobody writes by this stream any more, and it is closed."""
        if not stream.close():
            return False
        receiver.stopped()
        return True

    def _mend(self, link: Link, stream: SinkStream) -> None:
        """A stream broke and the link attaches again: what it carried is asked for once more,
        except into slots whose writer cannot be stopped."""
        if not self._close_stream(stream, link.receiver):
            self._closing.append((stream, link.receiver))
            for active in [a for a in self.on(link) if a.fetch.num_writing]:
                self.follow(active, active.fetch.fail(PeerLost("its writer cannot be stopped")))
            link.receiver = link.receiver.successor()
        for active in self.on(link):
            self._waiting[active.fetch.fetch] = active
        link.attach_again(now_s=self._means.clock())

    def on(self, link: Link) -> list[Active]:
        """The running fetches of a link."""
        return [active for active in self._active.values() if active.link is link]

    def _hear(self, link: Link, message: FetchFailed | Renewed) -> None:
        if isinstance(message, Renewed):
            self._hear_renewed(link, message)
            return
        active = self._active.get(FetchId(message.fetch))
        if active is None or active.link is not link:
            return
        if message.attempt >= active.fetch.attempt:  # it was asked again: that has its own answer
            error = _ERRORS[message.code](message.reason)
            self.follow(active, active.fetch.fail(error))

    def _hear_renewed(self, link: Link, message: Renewed) -> None:
        """End the fetches whose leases are gone."""
        gone = {end.lease: end for end in message.gone}
        link.leases.difference_update(gone)
        if not gone:
            return
        for active in self.on(link):
            if end := gone.get(active.fetch.lease):
                self.follow(active, active.fetch.fail(_ERRORS[end.code](end.reason)))

    # -- what the state table answers -----------------------------------------------------

    def find(self, fetch: FetchId, key: tuple[str, Epoch]) -> Active | None:
        """A running fetch of the link with this key."""
        active = self._active.get(fetch)
        return None if active is None or active.link is not self._links.get(key) else active

    def quiet(self, block_ids: Sequence[int]) -> None:
        """Nobody writes into these slots of ended fetches any more."""
        try:
            self._means.on_quiet(block_ids)
        except Exception:
            log.exception("the owner of quarantined slots failed to take them back")

    def notice(self, notice: Notice) -> None:
        """Tell the owner what happens on the way."""
        try:
            self._means.on_notice(notice)
        except Exception:
            log.exception("the owner of a sink failed at a notice")

    def rejected(self, source: WorkerId, num_pieces: int, why: str) -> None:
        log.warning("block rejected", extra={"source": source, "blocks": num_pieces, "why": why})
        self.notice(Rejected(num_blocks=num_pieces, why=why))

    def finished(self, active: Active, word: Finish) -> None:
        """The source has written everything that this fetch is of."""
        active.written_s = self._means.clock() - word.since_s
        steps = active.fetch.note_arrived(attempt=word.attempt, note=word.note)
        self.follow(active, steps)

    def follow(self, active: Active, steps: Sequence[session.FetchStep]) -> None:
        """Carry out what a fetch's state table asks for."""
        fetch = active.fetch
        for step in steps:
            match step:
                case session.SendFetch():
                    if step.attempt > 1:
                        self.notice(AskedAgain(source=active.ticket.worker, attempt=step.attempt))
                    self._say(active, self._word(active, step))
                case session.SendRelease():
                    self._say(active, Release(lease=fetch.lease))
                case session.SendCancel(reason=reason):
                    self._say(active, Cancel(lease=fetch.lease, reason=reason[:2_000]))
                case session.End():
                    self._end(active)
                case _:
                    assert_never(step)
        if fetch.over and not fetch.ended:
            self._stop_writers(active)

    def _stop_writers(self, active: Active) -> None:
        """Stop whoever writes into its slots; those of one who goes on are quarantined."""
        link = active.link
        assert link is not None
        stream = link.stream
        if stream is not None and stream.stop_writing(active.fetch.fetch):
            link.receiver.stopped(active.fetch.fetch)
        self.follow(active, active.fetch.abandon())

    def _word(self, active: Active, step: session.SendFetch) -> Fetch:
        fetch, heads = active.fetch, active.heads
        return Fetch(
            fetch=fetch.fetch, attempt=step.attempt, lease=fetch.lease,
            compat=self._means.compat, layout=self._means.layout,
            heads=None if heads is None else (heads.start, heads.stop),
            indices=step.indices.tobytes(), slots=step.slots.tobytes(),
        )  # fmt: skip

    def _say(self, active: Active, message: Fetch | Release | Cancel) -> None:
        """Tell the source, unless its link is lost: then it knows, or its lease runs out."""
        if active.link is None or active.link.stage is LinkStage.LOST:
            return
        try:
            active.link.say(message)
        except PeerLost as error:
            log.warning("a word to the source was lost", extra={"why": str(error)})

    def _end(self, active: Active) -> None:
        fetch = active.fetch
        del self._active[fetch.fetch]
        self._waiting.pop(fetch.fetch, None)
        self._deadlines.drop(fetch.fetch)
        if active.link is not None:
            active.link.leases.discard(fetch.lease)
        end = active.outcome(now_s=self._means.clock())
        if isinstance(end, Landed):
            assert active.link is not None
            active.link.num_breaks = 0
            self.used[end.transport] += 1
        try:
            active.on_end(end)
        except Exception:
            log.exception("the owner of a fetch failed at its end")


class _FetchesOf:
    """The fetches of one link, as its receiver sees them."""

    def __init__(self, fetcher: Fetcher, key: tuple[str, Epoch], *, source: WorkerId) -> None:
        self._fetcher = fetcher
        self._key = key
        self._source = source

    def find(self, fetch: FetchId) -> Receiving | None:
        return self._fetcher.find(fetch, self._key)

    def follow(self, active: Receiving, steps: Sequence[session.FetchStep]) -> None:
        assert isinstance(active, Active)
        self._fetcher.follow(active, steps)

    def finished(self, active: Receiving, word: Finish) -> None:
        assert isinstance(active, Active)
        self._fetcher.finished(active, word)

    def quiet(self, block_ids: Sequence[int]) -> None:
        self._fetcher.quiet(block_ids)

    def rejected(self, num_pieces: int, why: str) -> None:
        self._fetcher.rejected(self._source, num_pieces, why)
