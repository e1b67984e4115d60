"""All of a source's leases, on the source's thread: what is written is sent, what ends is told.

Sums and sends blocks in turns, so control messages and renewals are never kept waiting by bytes.
A lease belongs to the first sink that renews or fetches it, and ends with it.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, assert_never

from kvtransfer.deadlines import Deadlines
from kvtransfer.endings import LeaseEnd, LeaseEndReason
from kvtransfer.memory.pool import SUM_S
from kvtransfer.messages import (
    Borrow,
    Cancel,
    EndedLease,
    FailureCode,
    FetchBlocks,
    FetchFailed,
    FetchId,
    Finish,
    Lent,
    Open,
    Release,
    Renew,
    Renewed,
    ToSource,
)
from kvtransfer.plan import Plan, plan
from kvtransfer.source.borrowing import BorrowId, Borrowing, nothing_lent
from kvtransfer.source.chunks import Chunks, NotSummed, ReadyChunk, unpack_u4
from kvtransfer.source.lease import FetchRefused, Lease
from kvtransfer.source.means import SourceMeans
from kvtransfer.source.sinks import ConnectedSink, Sinks
from kvtransfer.sum_kinds import WORD_SUM, WORD_SUM_GRAIN_BYTES
from kvtransfer.transports.control import Identity
from protocol.errors import CapacityError, LayoutMismatch, TransferError, WireError
from protocol.ids import BlockHash, LeaseId, WorkerId

log = logging.getLogger(__name__)

MAX_LEASES: Final = 65_536
_QUEUED_BYTES: Final = 4 << 20
"""Most bytes waiting in one stream, so that a cancelled fetch has few to take back."""
LOAN_S: Final = 10.0
"""A loan of cached blocks cannot be renewed beyond this: nobody waits so long for what it could
compute, and the blocks are missed here."""
_REMEMBERED_ENDS: Final = 1_024
_CODES: Final[dict[LeaseEndReason, FailureCode]] = {
    "released": "lease_expired",
    "expired": "lease_expired",
    "failed": "failed",
    "closed": "closed",
}


class LeaseTable:
    """Those of one source, by their ids."""

    def __init__(
        self, means: SourceMeans,
        connect_sinks: Callable[[Callable[[ConnectedSink, str], None]], Sinks],
    ) -> None:  # fmt: skip
        """`connect_sinks` makes the sinks that are lent to, given what to call when one is lost."""
        self._means = means
        self._chunks = Chunks(means.memory)
        self._leases: dict[LeaseId, Lease] = {}
        self._lock = threading.Lock()
        """Held to add a lease, and to close: none is added after the last has ended."""
        self._closed = False
        self._holders: dict[LeaseId, ConnectedSink] = {}
        self._finished_s: dict[LeaseId, float] = {}
        self._busy: OrderedDict[LeaseId, None] = OrderedDict()
        """Leases that may have something to send."""
        self._ended: OrderedDict[LeaseId, EndedLease] = OrderedDict()
        self._deadlines: Deadlines[LeaseId] = Deadlines()
        self._borrowing = Borrowing(means.on_borrow, compat=means.compat)
        self._loan_ends_s: dict[LeaseId, float] = {}
        """Of leases on cached blocks: until when they may be renewed."""
        self.sinks = connect_sinks(self._end_leases_of)

    # -- from any thread ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._leases)

    def add_lease(self, lease: Lease) -> None:
        """Make a lease known, before its ticket is given to anyone. Raises CapacityError."""
        with self._lock:
            if self._closed or len(self._leases) >= MAX_LEASES:
                raise CapacityError("the source takes no more leases")
            self._leases[lease.id] = lease

    def num_tokens(self, lease_id: LeaseId) -> int | None:
        """Tokens of a lease that has not ended."""
        lease = self._leases.get(lease_id)
        return None if lease is None else lease.num_tokens

    def num_sent(self, lease_id: LeaseId) -> int:
        """Blocks sent under a lease that has not ended, counting those sent again."""
        lease = self._leases.get(lease_id)
        return 0 if lease is None else lease.num_sent

    # -- from the owner of the blocks -----------------------------------------------------

    def start_term(self, lease_id: LeaseId, at_s: float) -> None:
        self._deadlines.set(lease_id, now_s=at_s, remaining_s=self._means.lease_ttl_s)

    def publish_tokens(self, lease_id: LeaseId, num_tokens: int) -> None:
        if lease := self._leases.get(lease_id):
            lease.publish(num_tokens)
            self._chunks.note_written(lease)
            self._busy[lease_id] = None

    def finish_lease(self, lease_id: LeaseId, note: bytes, at_s: float) -> None:
        if lease := self._leases.get(lease_id):
            lease.finish(note)
            self._chunks.note_written(lease)
            self._finished_s[lease_id] = at_s
            self._busy[lease_id] = None

    def give_loan(self, borrow: BorrowId, lease_id: LeaseId, last: BlockHash) -> None:
        """Whoever asked holds this lease from here on; it ends if nobody does any more."""
        lease, asked = self._leases.get(lease_id), self._borrowing.pop_asked(borrow)
        if lease is None:
            return
        if asked is None:
            self._end(lease, "expired", "whoever asked is gone")
            return
        sink, fetch = asked
        now_s = self._means.clock()
        self._loan_ends_s[lease_id] = now_s + LOAN_S
        self.start_term(lease_id, now_s)
        self._hold(sink, lease_id)
        lent = Lent(fetch=fetch, lease=lease_id, num_tokens=lease.num_tokens, last=last)
        self.sinks.send(sink, lent)

    def refuse_loan(self, borrow: BorrowId, reason: str) -> None:
        """Nothing is lent to whoever asked."""
        if (asked := self._borrowing.pop_asked(borrow)) is not None:
            sink, fetch = asked
            self.sinks.send(sink, nothing_lent(fetch, reason))

    def fail_lease(self, lease_id: LeaseId, reason: str) -> None:
        if lease := self._leases.get(lease_id):
            self._end(lease, "failed", reason)

    # -- from the sinks -------------------------------------------------------------------

    def answer_message(self, identity: Identity, message: ToSource | WireError) -> None:
        sink = self.sinks.find_sink(identity)
        if isinstance(message, WireError):
            remedy = "run one version everywhere; let nothing but workers reach this port"
            log.warning("control message refused", extra={"why": str(message), "remedy": remedy})
            self.sinks.refuse_sink(identity, "protocol", str(message)[:2_000])
        elif isinstance(message, Open):
            self.sinks.open_session(identity, message)
        elif sink is None:
            self.sinks.refuse_sink(identity, "protocol", "open first")
        else:
            self._answer(sink, message)

    def run_turn(self) -> None:
        """Send a turn's worth for everyone, and end what nobody renewed."""
        if self._chunks.launches:
            self._sum_some()
        for lease_id in list(self._busy):
            lease = self._leases.get(lease_id)
            if lease is not None:
                self._send_ready(lease)
        for lease_id in self._deadlines.expired(self._means.clock()):
            if lease := self._leases.get(lease_id):  # an end may end others
                self._end(lease, "expired", "nobody renewed it")
        self._sum_some()

    def _sum_some(self) -> None:
        try:
            self._chunks.sum_some()
        except TransferError as error:  # the leases that need the sums are told
            log.warning("blocks are not summed", extra={"why": str(error)})

    @property
    def awaits_device(self) -> bool:
        """A chunk waits for its sums: come again soon."""
        return any(self._chunks.is_awaited(lease_id) for lease_id in self._busy)

    def sleep_s(self, longest_s: float) -> float:
        """How long nothing needs to be done unless something comes."""
        waiting = (x for x in self._busy if not self._chunks.is_awaited(x))
        if self._chunks.has_work or any(self._can_send(self._leases[one]) for one in waiting):
            return 0.0
        next_s = self._deadlines.next_in_s(self._means.clock())
        return longest_s if next_s is None else min(longest_s, next_s)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for lease in list(self._leases.values()):
            try:
                self._end(lease, "closed", "the source closes")
            except Exception:  # a fault of ours, perhaps the reason to close: the others go on
                log.exception("a lease could not be ended in order", extra={"lease": lease.id})

    # -- answers --------------------------------------------------------------------------

    def _answer(
        self, sink: ConnectedSink, message: FetchBlocks | Renew | Release | Cancel | Borrow
    ) -> None:
        match message:
            case FetchBlocks():
                self._begin_fetch(sink, message)
            case Borrow():
                if (refusal := self._borrowing.ask_owner(sink, message)) is not None:
                    self.sinks.send(sink, refusal)
            case Renew(leases=leases, remaining_s=remaining_s):
                ended = [x for x in leases if not self._renew(sink, x, remaining_s)]
                answer = Renewed(gone=tuple(self._why_not_held(x, sink) for x in ended))
                self.sinks.send(sink, answer)
            case Release(lease=lease_id):
                if self._holders.get(lease_id) is sink:
                    self._end(self._leases[lease_id], "released", "landed")
            case Cancel(lease=lease_id, reason=reason):
                if lease_id in self._leases and self._holders.get(lease_id, sink) is sink:
                    self._end(self._leases[lease_id], "released", reason)
            case _:
                assert_never(message)

    def _renew(self, sink: ConnectedSink, lease_id: LeaseId, remaining_s: float) -> bool:
        if lease_id not in self._leases or not self._hold(sink, lease_id):
            return False
        now_s, longest_s = self._means.clock(), self._means.lease_ttl_s
        if lease_id in self._loan_ends_s:
            longest_s = min(longest_s, self._loan_ends_s[lease_id] - now_s)
        return self._deadlines.renew(lease_id, now_s=now_s, remaining_s=min(remaining_s, longest_s))

    def _hold(self, sink: ConnectedSink, lease_id: LeaseId) -> bool:
        """Make the sink the one holder of the lease; False if another one is."""
        if self._holders.setdefault(lease_id, sink) is not sink:
            return False
        sink.leases.add(lease_id)
        return True

    def _begin_fetch(self, sink: ConnectedSink, message: FetchBlocks) -> None:
        if sink.stream is None and sink.stream_end:
            return  # its stream broke on the way: it asks again over the next one
        try:
            self._accept_fetch(sink, message)
        except FetchRefused as refused:
            answer = FetchFailed(
                fetch=message.fetch, attempt=message.attempt, code=refused.code,
                reason=str(refused)[:2_000],
            )  # fmt: skip
            self.sinks.send(sink, answer)
        else:
            self._renew(sink, message.lease, self._means.lease_ttl_s)
            self._busy[message.lease] = None

    def _accept_fetch(self, sink: ConnectedSink, message: FetchBlocks) -> None:
        """Raises FetchRefused."""
        lease = self._leases.get(message.lease)
        if lease is None:
            raise self._refusal(message.lease, sink)
        asked = self._plan(message)
        if sink.stream is None:
            raise FetchRefused("no stream is open")
        if sink.sum_kind == WORD_SUM and not asked.is_of_grains(WORD_SUM_GRAIN_BYTES):
            why = (
                f"its pieces are no multiples of {WORD_SUM_GRAIN_BYTES} bytes, as {WORD_SUM} needs"
            )
            raise FetchRefused(why, code="mismatch")
        if not self._hold(sink, message.lease):
            raise self._refusal(message.lease, sink)
        indices = unpack_u4(message.indices)
        if len(behind := asked.not_lent(indices, lease.block_ids_B)):
            raise FetchRefused(f"block {behind.min()} is not lent: a window has left it behind")
        if lease.accept_fetch(
            fetch_id=FetchId(message.fetch), attempt=message.attempt, indices=indices,
            slots=unpack_u4(message.slots), block_tokens=message.layout.block_tokens,
        ):  # fmt: skip
            # What is on its way goes on: the sink may be writing it, and has not asked again.
            self._chunks.plan_fetch(lease, asked)

    def _plan(self, message: FetchBlocks) -> Plan:
        """From our layout to the fetcher's. Raises FetchRefused."""
        heads = None if message.heads is None else range(*message.heads)
        try:
            found = plan(self._means.layout, message.layout, heads=heads)
        except LayoutMismatch as error:
            raise FetchRefused(str(error), code="mismatch") from error
        if message.compat != self._means.compat:
            raise FetchRefused("the fetcher's model is another", code="mismatch")
        return found

    def _refusal(self, lease_id: LeaseId, sink: ConnectedSink) -> FetchRefused:
        ended = self._why_not_held(lease_id, sink)
        return FetchRefused(ended.reason, code=ended.code)

    # -- sending --------------------------------------------------------------------------

    def _can_send(self, lease: Lease) -> bool:
        sink = self._holders.get(lease.id)
        if sink is None or sink.stream is None:
            return False
        return bool(lease.num_ready) and sink.stream.queued_bytes < _QUEUED_BYTES

    def _send_ready(self, lease: Lease) -> None:
        if self._can_send(lease):
            self._send_chunk(lease)
        if not lease.is_over and not lease.num_ready:
            self._send_note(lease)
            self._busy.pop(lease.id, None)
        sink = self._holders.get(lease.id)
        if sink is not None:
            self.sinks.flush_stream(sink)

    def _send_note(self, lease: Lease) -> None:
        sink = self._holders.get(lease.id)
        if sink is None or sink.stream is None:
            return
        note = lease.take_note()
        if note is None or lease.fetch_id is None:
            return
        since_s = max(0.0, self._means.clock() - self._finished_s[lease.id])
        sink.stream.finish(
            Finish(fetch=lease.fetch_id, attempt=lease.attempt, note=note, since_s=since_s)
        )

    def _send_chunk(self, lease: Lease) -> None:
        sink, now_s = self._holders[lease.id], self._means.clock()
        assert sink.stream is not None
        try:
            ready = self._chunks.next_chunk(
                lease, most_bytes=sink.chunk_bytes, sum_kind=sink.sum_kind, now_s=now_s
            )
        except TransferError as error:
            self._end(lease, "failed", f"blocks cannot be summed: {error}")
            return
        match ready:
            case ReadyChunk(chunk=chunk, ranges=ranges):
                sink.stream.offer(chunk, ranges)
            case NotSummed(since_s=since_s):
                if now_s - since_s > SUM_S:
                    late = f"the device has not summed blocks within {SUM_S} s"
                    self._end(lease, "failed", late)
            case None:
                self._end(lease, "failed", "a block was given to another request")
            case _:
                assert_never(ready)

    # -- ends -----------------------------------------------------------------------------

    def _end_leases_of(self, sink: ConnectedSink, why: str) -> None:
        """A sink is gone, and with it what it held and asked for."""
        self._borrowing.forget_sink(sink)
        for lease_id in list(sink.leases):
            if lease := self._leases.get(lease_id):
                self._end(lease, "expired", f"{sink.worker} is gone: {why}")

    def _end(self, lease: Lease, reason: LeaseEndReason, detail: str) -> None:
        """The one place where a lease ends."""
        if lease.is_over:
            return
        if reason == "expired":
            lease.lapse()
        else:
            lease.release()
        sink = self._holders.pop(lease.id, None)
        num_bytes = self._forget(lease)
        self._remember_end(lease.id, reason, detail)
        transport = "" if sink is None else self._drop_holder(lease, sink, reason, detail)
        end = LeaseEnd(
            lease=lease.id, reason=reason, detail=detail, transport=transport,
            peer=sink.worker if sink is not None and transport else WorkerId(""),
            num_blocks=lease.num_sent, num_bytes=num_bytes,
        )  # fmt: skip
        try:
            self._means.on_lease_end(end)
        except Exception:
            log.exception("the owner of a lease failed at its end", extra={"lease": lease.id})

    def _forget(self, lease: Lease) -> int:
        """Bytes that were sent under it."""
        del self._leases[lease.id]
        self._deadlines.drop(lease.id)
        self._busy.pop(lease.id, None)
        self._finished_s.pop(lease.id, None)
        self._loan_ends_s.pop(lease.id, None)
        return self._chunks.forget_lease(lease.id)

    def _drop_holder(
        self, lease: Lease, sink: ConnectedSink, reason: LeaseEndReason, detail: str
    ) -> str:
        """Stop reading for the holder of a lease and tell it why; its transport."""
        sink.leases.discard(lease.id)
        if lease.fetch_id is None or sink.stream is None:
            return ""
        sink.stream.drop(lease.fetch_id)
        transport = sink.stream.transport
        if reason != "released":
            message = FetchFailed(
                fetch=lease.fetch_id, attempt=lease.attempt, code=_CODES[reason],
                reason=detail[:2_000],
            )  # fmt: skip
            self.sinks.send(sink, message)  # which may lose the sink, and its stream
        return transport

    def _why_not_held(self, lease_id: LeaseId, sink: ConnectedSink) -> EndedLease:
        """Why a sink cannot have a lease."""
        if lease_id in self._leases and self._holders.get(lease_id, sink) is sink:
            return EndedLease(lease=lease_id, code="lease_expired", reason="its term is over")
        if lease_id in self._leases:
            why = "another worker holds the lease"
            return EndedLease(lease=lease_id, code="refused", reason=why)
        unknown = EndedLease(lease=lease_id, code="lease_expired", reason="no such lease")
        return self._ended.get(lease_id, unknown)

    def _remember_end(self, lease_id: LeaseId, reason: LeaseEndReason, detail: str) -> None:
        told = f"lease {reason}: {detail}"[:2_000]
        self._ended[lease_id] = EndedLease(lease=lease_id, code=_CODES[reason], reason=told)
        while len(self._ended) > _REMEMBERED_ENDS:
            self._ended.popitem(last=False)
