"""All of a source's leases, on the source's thread: what is written goes out, what ends is told.

Sums and offers blocks in turns, so control messages and renewals are never kept waiting by bytes.
A lease belongs to the first sink that renews or fetches it, and ends with it.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from kvtransfer.deadlines import Deadlines
from kvtransfer.endings import LeaseEnd, LeaseEndReason
from kvtransfer.memory.host_pool import Pool
from kvtransfer.messages import (
    Cancel,
    FailureCode,
    Fetch,
    FetchFailed,
    FetchId,
    Finish,
    Gone,
    Open,
    Refused,
    Release,
    Renew,
    Renewed,
    ToSource,
)
from kvtransfer.plan import plan
from kvtransfer.source.chunks import Offers, u4
from kvtransfer.source.lease import Lending, Refusal
from kvtransfer.source.sinks import Visitor, Visitors
from kvtransfer.transports.control import Identity
from protocol.errors import CapacityError, LayoutMismatch, WireError
from protocol.ids import LeaseId, WorkerId
from protocol.layout import Layout

log = logging.getLogger(__name__)

MAX_LEASES: Final = 65_536
_QUEUED_BYTES: Final = 4 << 20
"""Most bytes waiting in one stream, so that a cancelled fetch has few to take back."""
_REMEMBERED_ENDS: Final = 1_024
_CODES: Final[dict[LeaseEndReason, FailureCode]] = {
    "released": "lease_expired",
    "expired": "lease_expired",
    "failed": "failed",
    "closed": "closed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wares:
    """What a source lends, and to whom it would."""

    memory: Pool
    layout: Layout
    compat: str
    lease_ttl_s: float
    on_lease_end: Callable[[LeaseEnd], None]
    clock: Callable[[], float]


class Lender:
    def __init__(self, wares: Wares) -> None:
        self._wares = wares
        self._offers = Offers(wares.memory, wares.layout)
        self._lendings: dict[LeaseId, Lending] = {}
        self._door = threading.Lock()
        """Held to let a lease in, and to close: none slips in after the last has ended."""
        self._closed = False
        self._holders: dict[LeaseId, Visitor] = {}
        self._finished_s: dict[LeaseId, float] = {}
        self._busy: OrderedDict[LeaseId, None] = OrderedDict()
        """Leases that may have something to send."""
        self._ended: OrderedDict[LeaseId, Gone] = OrderedDict()
        self._deadlines: Deadlines[LeaseId] = Deadlines()

    # -- from any thread ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._lendings)

    def let_in(self, lending: Lending) -> None:
        """Make a lease known, before its ticket is given to anyone. Raises CapacityError."""
        with self._door:
            if self._closed or len(self._lendings) >= MAX_LEASES:
                raise CapacityError("the source takes no more leases")
            self._lendings[lending.lease] = lending

    def num_tokens(self, lease: LeaseId) -> int | None:
        """Tokens of a lease that has not ended."""
        lending = self._lendings.get(lease)
        return None if lending is None else lending.num_tokens

    def num_sent(self, lease: LeaseId) -> int:
        """Blocks offered under a lease that has not ended."""
        lending = self._lendings.get(lease)
        return 0 if lending is None else lending.num_sent

    # -- from the owner of the blocks -----------------------------------------------------

    def opened(self, lease: LeaseId, at_s: float) -> None:
        self._deadlines.set(lease, now_s=at_s, remaining_s=self._wares.lease_ttl_s)

    def written(self, lease: LeaseId, num_tokens: int) -> None:
        if lending := self._lendings.get(lease):
            lending.publish(num_tokens)
            self._offers.written(lending)
            self._busy[lease] = None

    def finished(self, lease: LeaseId, note: bytes, at_s: float) -> None:
        if lending := self._lendings.get(lease):
            lending.finish(note)
            self._offers.written(lending)
            self._finished_s[lease] = at_s
            self._busy[lease] = None

    def failed(self, lease: LeaseId, reason: str) -> None:
        if lending := self._lendings.get(lease):
            self._end(lending, "failed", reason)

    # -- from the sinks -------------------------------------------------------------------

    def use(self, visitors: Visitors) -> None:
        """The sinks it lends to; they are told of ends and lost through here."""
        self._visitors = visitors

    def hear(self, identity: Identity, message: ToSource | WireError) -> None:
        visitor = self._visitors.get(identity)
        if isinstance(message, WireError):
            log.warning("control message refused", extra={"why": str(message)})
            self._visitors.refuse(identity, Refused(code="protocol", reason=str(message)[:2_000]))
        elif isinstance(message, Open):
            self._visitors.open(identity, message)
        elif visitor is None:
            self._visitors.refuse(identity, Refused(code="protocol", reason="open first"))
        else:
            self._answer(visitor, message)

    def lost(self, visitor: Visitor, why: str) -> None:
        """A sink is gone, and with it what it held."""
        for lease in list(visitor.leases):
            if lending := self._lendings.get(lease):
                self._end(lending, "expired", f"{visitor.worker} is gone: {why}")

    def turn(self) -> None:
        """Send a turn's worth for everyone, and end what nobody renewed."""
        for lease in list(self._busy):
            lending = self._lendings.get(lease)
            if lending is not None:
                self._serve(lending)
        for lease in self._deadlines.expired(self._wares.clock()):
            if lending := self._lendings.get(lease):  # an end may end others
                self._end(lending, "expired", "nobody renewed it")
        self._offers.sum_some()

    def sleep_s(self, longest_s: float) -> float:
        """How long nothing needs to be done unless something comes."""
        if self._offers.has_work or any(
            self._can_serve(self._lendings[lease]) for lease in self._busy
        ):
            return 0.0
        next_s = self._deadlines.next_in_s(self._wares.clock())
        return longest_s if next_s is None else min(longest_s, next_s)

    def close(self) -> None:
        with self._door:
            self._closed = True
        for lending in list(self._lendings.values()):
            try:
                self._end(lending, "closed", "the source closes")
            except Exception:  # a fault of ours, perhaps the reason to close: the others go on
                log.exception("a lease could not be ended in order", extra={"lease": lending.lease})

    # -- answers --------------------------------------------------------------------------

    def _answer(self, visitor: Visitor, message: Fetch | Renew | Release | Cancel) -> None:
        match message:
            case Fetch():
                self._fetch(visitor, message)
            case Renew(leases=leases, remaining_s=remaining_s):
                gone = [x for x in leases if not self._renew(visitor, x, remaining_s)]
                self._visitors.send(
                    visitor, Renewed(gone=tuple(self._how(x, visitor) for x in gone))
                )
            case Release(lease=lease):
                if self._holders.get(lease) is visitor:
                    self._end(self._lendings[lease], "released", "landed")
            case Cancel(lease=lease, reason=reason):
                if lease in self._lendings and self._holders.get(lease, visitor) is visitor:
                    self._end(self._lendings[lease], "released", reason)
            case _:
                assert_never(message)

    def _renew(self, visitor: Visitor, lease: LeaseId, remaining_s: float) -> bool:
        if lease not in self._lendings or not self._hold(visitor, lease):
            return False
        return self._deadlines.renew(
            lease,
            now_s=self._wares.clock(),
            remaining_s=min(remaining_s, self._wares.lease_ttl_s),
        )

    def _hold(self, visitor: Visitor, lease: LeaseId) -> bool:
        """Make the visitor the one holder of the lease; False if another one is."""
        if self._holders.setdefault(lease, visitor) is not visitor:
            return False
        visitor.leases.add(lease)
        return True

    def _fetch(self, visitor: Visitor, message: Fetch) -> None:
        if visitor.stream is None and visitor.parted:
            return  # its stream broke on the way: it asks again over the next one
        refused = self._why_not(visitor, message)
        if refused is None:
            self._renew(visitor, message.lease, self._wares.lease_ttl_s)
            self._busy[message.lease] = None
            return
        word = FetchFailed(
            fetch=message.fetch, attempt=message.attempt, code=refused.code, reason=refused.reason
        )
        self._visitors.send(visitor, word)

    def _why_not(self, visitor: Visitor, message: Fetch) -> Gone | None:
        """Take a fetch up, or say why it cannot be served."""
        lease = message.lease
        lending = self._lendings.get(lease)
        if lending is None:
            return self._how(lease, visitor)
        heads = None if message.heads is None else range(*message.heads)
        try:
            way = plan(self._wares.layout, message.layout, heads=heads)
        except LayoutMismatch as error:
            return Gone(lease=lease, code="mismatch", reason=str(error)[:2_000])
        if message.compat != self._wares.compat:
            return Gone(lease=lease, code="mismatch", reason="the fetcher's model is another")
        if visitor.stream is None:
            return Gone(lease=lease, code="refused", reason="no stream is open")
        if not self._hold(visitor, lease):
            return self._how(lease, visitor)
        fetch = FetchId(message.fetch)
        try:
            indices = u4(message.indices)
            if len(behind := way.not_lent(indices, lending.block_ids_B)):
                raise Refusal(f"block {behind.min()} is not lent: a window has left it behind")
            if lending.fetched(
                fetch=fetch, attempt=message.attempt, indices=indices,
                slots=u4(message.slots), block_tokens=message.layout.block_tokens,
            ):  # fmt: skip
                # What is on its way goes on: the sink may be writing it, and has not asked again.
                self._offers.planned(lending, way)
        except (Refusal, WireError) as error:
            return Gone(lease=lease, code="refused", reason=str(error))
        return None

    # -- sending --------------------------------------------------------------------------

    def _can_serve(self, lending: Lending) -> bool:
        visitor = self._holders.get(lending.lease)
        if visitor is None or visitor.stream is None:
            return False
        return bool(lending.num_ready) and visitor.stream.queued_bytes < _QUEUED_BYTES

    def _serve(self, lending: Lending) -> None:
        if self._can_serve(lending):
            self._send_chunk(lending)
        if not lending.is_over and not lending.num_ready:
            self._send_note(lending)
            self._busy.pop(lending.lease, None)
        visitor = self._holders.get(lending.lease)
        if visitor is not None:
            self._visitors.flush(visitor)

    def _send_note(self, lending: Lending) -> None:
        visitor = self._holders.get(lending.lease)
        if visitor is None or visitor.stream is None:
            return
        note = lending.take_note()
        if note is None or lending.fetch is None:
            return
        since_s = max(0.0, self._wares.clock() - self._finished_s[lending.lease])
        visitor.stream.finish(
            Finish(fetch=lending.fetch, attempt=lending.attempt, note=note, since_s=since_s)
        )

    def _send_chunk(self, lending: Lending) -> None:
        visitor = self._holders[lending.lease]
        assert visitor.stream is not None
        offer = self._offers.next(lending, most_bytes=visitor.stream.chunk_bytes)
        if offer is None:
            self._end(lending, "failed", "a block was given to another request")
            return
        visitor.stream.offer(offer.chunk, offer.ranges)

    # -- ends -----------------------------------------------------------------------------

    def _end(self, lending: Lending, reason: LeaseEndReason, detail: str) -> None:
        """The one place where a lease ends."""
        if lending.is_over:
            return
        if reason == "expired":
            lending.lapse()
        else:
            lending.release()
        lease, visitor = lending.lease, self._holders.pop(lending.lease, None)
        del self._lendings[lease]
        self._deadlines.drop(lease)
        self._busy.pop(lease, None)
        self._finished_s.pop(lease, None)
        num_bytes = self._offers.forget(lease)
        self._remember(
            Gone(lease=lease, code=_CODES[reason], reason=f"lease {reason}: {detail}"[:2_000])
        )
        transport = "" if visitor is None else self._let_go(lending, visitor, reason, detail)
        end = LeaseEnd(
            lease=lease, reason=reason, detail=detail, transport=transport,
            peer=visitor.worker if visitor is not None and transport else WorkerId(""),
            num_blocks=lending.num_sent, num_bytes=num_bytes,
        )  # fmt: skip
        try:
            self._wares.on_lease_end(end)
        except Exception:
            log.exception("the owner of a lease failed at its end", extra={"lease": lease})

    def _let_go(
        self, lending: Lending, visitor: Visitor, reason: LeaseEndReason, detail: str
    ) -> str:
        """Stop reading for the holder of a lease and tell it why; its transport."""
        visitor.leases.discard(lending.lease)
        if lending.fetch is None or visitor.stream is None:
            return ""
        visitor.stream.drop(lending.fetch)
        transport = visitor.stream.transport
        if reason != "released":
            word = FetchFailed(
                fetch=lending.fetch, attempt=lending.attempt, code=_CODES[reason],
                reason=detail[:2_000],
            )  # fmt: skip
            self._visitors.send(visitor, word)  # which may lose the visitor, and its stream
        return transport

    def _how(self, lease: LeaseId, visitor: Visitor) -> Gone:
        """Why a visitor cannot have a lease."""
        if lease in self._lendings and self._holders.get(lease, visitor) is visitor:
            return Gone(lease=lease, code="lease_expired", reason="its term is over")
        if lease in self._lendings:
            return Gone(lease=lease, code="refused", reason="another worker holds the lease")
        unknown = Gone(lease=lease, code="lease_expired", reason="no such lease")
        return self._ended.get(lease, unknown)

    def _remember(self, how: Gone) -> None:
        self._ended[how.lease] = how
        while len(self._ended) > _REMEMBERED_ENDS:
            self._ended.popitem(last=False)
