"""All of a sink's fetches and links, on the sink's thread: facts in, table steps carried out.

Called by `kvtransfer.sink` alone. Owns each fetch from `begin` until its end has been told, and
each link until it is lost. Knows no locks: nothing here is called from a second thread.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from kvtransfer import session
from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.link import Link, LinkStage, broken
from kvtransfer.messages import (
    Cancel,
    FailureCode,
    Fetch,
    FetchFailed,
    FetchId,
    Finish,
    Ready,
    Release,
    Renewed,
    Slot,
)
from kvtransfer.pool import BlockMemory
from kvtransfer.receiver import Receiver
from kvtransfer.session import FetchStage
from kvtransfer.transports.control import ControlContext, Poller
from protocol.errors import LayoutMismatch, LeaseExpired, PeerLost, TransferError, WireError
from protocol.ids import Epoch, WorkerId
from protocol.layout import KvLayout
from protocol.lease import Deadlines, renew_every_s
from protocol.messages import Ticket

log = logging.getLogger(__name__)

_ERRORS: Final[dict[FailureCode, type[TransferError]]] = {
    "lease_expired": LeaseExpired,
    "mismatch": LayoutMismatch,
    "failed": TransferError,
    "refused": TransferError,
    "closed": PeerLost,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a worker fetches with and into."""

    memory: BlockMemory
    layout: KvLayout
    worker: WorkerId
    compat: str
    transports: tuple[str, ...]
    allow_fallback: bool
    lease_ttl_s: float
    tamper: Callable[[memoryview], None] | None
    clock: Callable[[], float]


@dataclass(slots=True, eq=False)
class Active:
    """One fetch under way."""

    fetch: session.Fetch
    ticket: Ticket
    on_end: Callable[[FetchEnd], None]
    started_s: float
    deadline_s: float
    link: Link | None = None
    written_s: float = 0.0
    """When the source was told that everything is written, on our clock."""


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
        self._receiver = Receiver(
            means.memory, find=self._find, follow=self._follow, tamper=means.tamper,
            clock=means.clock,
        )  # fmt: skip

    def begin(self, active: Active) -> None:
        """Take up a fetch. It ends by itself, whatever happens."""
        fetch, ticket = active.fetch, active.ticket
        self._active[fetch.fetch] = self._waiting[fetch.fetch] = active
        self._deadlines.set(fetch.fetch, now_s=0.0, remaining_s=active.deadline_s)
        try:
            active.link = self._link(ticket)
        except (TransferError, WireError) as error:
            self._follow(fetch, fetch.fail(broken(error)))
            return
        if ticket.layout != self._means.layout or ticket.compat != self._means.compat:
            mismatch = LayoutMismatch(f"{ticket.worker} serves another KV layout or model")
            self._follow(fetch, fetch.fail(mismatch))

    def cancel(self, fetch: FetchId, reason: str) -> None:
        active = self._active.get(fetch)
        if active is not None:
            self._follow(active.fetch, active.fetch.cancel(reason))

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
        """Take in what the links have, copy, and end what is late."""
        for key, link in list(self._links.items()):
            try:
                link.look(ready, now_s=self._means.clock())
                self._tend(link)
            except (TransferError, WireError) as error:
                self._lose(key, broken(error))
        self._receiver.copy()
        now_s = self._means.clock()
        for late in self._deadlines.expired(now_s):
            active = self._active[late]
            waited_s = now_s - active.started_s
            why = f"not landed within {waited_s:.3f} s, still {active.fetch.stage}"
            self._follow(active.fetch, active.fetch.fail(TransferError(why)))

    def sleep_s(self, longest_s: float) -> float:
        """How long nothing needs to be done unless something comes."""
        if self._receiver.has_work:
            return 0.0
        now_s = self._means.clock()
        waits = [longest_s]
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
            self._follow(active.fetch, active.fetch.cancel("the sink closes"))
        for link in self._links.values():
            link.lose()
        self._links.clear()
        self._context.close()

    # -- links ----------------------------------------------------------------------------

    def _link(self, ticket: Ticket) -> Link:
        """The link to the ticket's source, made if need be, and now renewing its lease."""
        key = (ticket.address, ticket.epoch)
        if key not in self._links:
            means = self._means
            self._links[key] = Link(
                ticket, worker=means.worker, context=self._context, poller=self._poller,
                transports=means.transports, allow_fallback=means.allow_fallback,
                block_bytes=means.layout.block_bytes, taker=self._receiver, on_word=self._hear,
                now_s=means.clock(),
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
            self._follow(active.fetch, active.fetch.start())

    def _lose(self, key: tuple[str, Epoch], error: TransferError) -> None:
        link = self._links.pop(key)
        log.warning("link lost", extra={"source": link.source, "why": str(error)})
        link.lose()
        for active in [a for a in self._active.values() if a.link is link]:
            self._follow(active.fetch, active.fetch.fail(error))

    def _hear(self, link: Link, message: Ready | Finish | FetchFailed | Renewed) -> None:
        if isinstance(message, Renewed):
            self._hear_renewed(link, message)
            return
        active = self._active.get(FetchId(message.fetch))
        if active is None or active.link is not link:
            return
        fetch = active.fetch
        match message:
            case Ready(attempt=attempt, blocks=blocks):
                self._receiver.may_read(link, fetch.fetch, attempt=attempt, blocks=blocks)
            case Finish(attempt=attempt, note=note, since_s=since_s):
                active.written_s = self._means.clock() - since_s
                self._follow(fetch, fetch.note_arrived(attempt=attempt, note=note))
            case FetchFailed(code=code, reason=reason):
                self._follow(fetch, fetch.fail(_ERRORS[code](reason)))
            case _:
                assert_never(message)

    def _hear_renewed(self, link: Link, message: Renewed) -> None:
        """End the fetches whose leases are gone."""
        gone = {end.lease: end for end in message.gone}
        link.leases.difference_update(gone)
        if not gone:
            return
        for active in [a for a in self._active.values() if a.link is link]:
            if end := gone.get(active.fetch.lease):
                self._follow(active.fetch, active.fetch.fail(_ERRORS[end.code](end.reason)))

    # -- what the state table answers -----------------------------------------------------

    def _find(self, fetch: FetchId) -> session.Fetch | None:
        active = self._active.get(fetch)
        return None if active is None else active.fetch

    def _follow(self, fetch: session.Fetch, steps: Sequence[session.FetchStep]) -> None:
        """Carry out what a fetch's state table asks for."""
        for step in steps:
            active = self._active[fetch.fetch]
            match step:
                case session.SendFetch(attempt=attempt, slots=slots):
                    self._say(active, self._word(fetch, attempt, slots))
                case session.SendRelease():
                    self._say(active, Release(lease=fetch.lease))
                case session.SendCancel(reason=reason):
                    self._say(active, Cancel(lease=fetch.lease, reason=reason[:2_000]))
                case session.End():
                    self._end(active)
                case _:
                    assert_never(step)
        if fetch.over and not fetch.ended:
            self._stop_writers(self._active[fetch.fetch])

    def _stop_writers(self, active: Active) -> None:
        if active.link is not None and active.link.stream is not None:
            active.link.stream.stop_writing(active.fetch.fetch)
        steps: list[session.FetchStep] = []
        for index in active.fetch.writing:
            steps += active.fetch.end_write(index, broken="the fetch is over")
        self._follow(active.fetch, steps)

    def _word(self, fetch: session.Fetch, attempt: int, slots: tuple[Slot, ...]) -> Fetch:
        return Fetch(
            fetch=fetch.fetch, attempt=attempt, lease=fetch.lease, compat=self._means.compat,
            layout=self._means.layout, slots=slots,
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
        end = self._outcome(active, flow_s=self._receiver.take_flow_s(fetch.fetch))
        if isinstance(end, Landed):
            self.used[end.transport] += 1
        try:
            active.on_end(end)
        except Exception:
            log.exception("the owner of a fetch failed at its end")

    def _outcome(self, active: Active, *, flow_s: float) -> FetchEnd:
        fetch, link = active.fetch, active.link
        if fetch.stage is FetchStage.FAILED:
            assert fetch.error is not None
            # A fresh one: a traceback would keep views of the pool alive as long as its reader.
            return Lost(type(fetch.error)(str(fetch.error)))
        if fetch.stage is FetchStage.ABORTED:
            return Aborted(fetch.reason)
        assert link is not None and link.stream is not None and fetch.note is not None
        now_s = self._means.clock()
        return Landed(
            note=fetch.note, transport=link.stream.transport, transport_why=link.why,
            num_blocks=fetch.num_slots,
            num_bytes=fetch.num_slots * self._means.layout.block_bytes,
            fetch_s=now_s - active.started_s, flow_s=flow_s,
            exposed_s=now_s - max(active.started_s, active.written_s),
        )  # fmt: skip
