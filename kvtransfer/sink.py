"""Fetches KV blocks from other workers' sources into named slots of this worker's pool.

The decode worker calls `fetch` once blocks are reserved; one thread ("kv-sink") asks, receives,
verifies, renews the leases and tells `on_end` exactly once per fetch, when nothing writes into
its slots any more. Until then the slots belong to the sink. Does not retry on another source:
that is the router's choice.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, assert_never

from kvtransfer import session
from kvtransfer.link import Link, LinkStage, broken
from kvtransfer.messages import (
    Cancel,
    Descriptor,
    FailureCode,
    FetchFailed,
    FetchId,
    Finish,
    Ready,
    Release,
    Renewed,
    Slot,
)
from kvtransfer.messages import Fetch as FetchWord
from kvtransfer.pool import BlockMemory, checksum
from kvtransfer.session import FetchStage
from kvtransfer.transports.control import ControlContext, Poller, Waker
from protocol.errors import (
    CapacityError,
    LayoutMismatch,
    LeaseExpired,
    PeerLost,
    TransferError,
    WireError,
)
from protocol.ids import Epoch, WorkerId
from protocol.layout import KvLayout
from protocol.lease import renew_every_s
from protocol.messages import Ticket

log = logging.getLogger(__name__)

TRANSPORTS: Final = ("shm", "tcp")
MAX_FETCHES: Final = 65_536
_TURN_BYTES: Final = 8 << 20
"""Most bytes copied before control messages are looked at again: about a millisecond."""
_IDLE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """Every slot holds verified bytes."""

    note: bytes
    transport: str
    transport_why: str
    num_blocks: int
    num_bytes: int
    fetch_s: float
    """From `fetch` to here."""
    exposed_s: float
    """Its part after the source was told that everything is written."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The blocks did not arrive; the slots hold nothing of use."""

    error: TransferError


@dataclass(frozen=True, slots=True)
class Aborted:
    """`cancel` or `close` ended the fetch."""

    reason: str


FetchEnd = Landed | Lost | Aborted


@dataclass(slots=True, eq=False)
class _Active:
    """One fetch under way."""

    fetch: session.Fetch
    ticket: Ticket
    slots: tuple[Slot, ...]
    on_end: Callable[[FetchEnd], None]
    started_s: float
    deadline_s: float
    link: Link | None = None
    asked: bool = False
    written_s: float = 0.0
    """When the source was told that everything is written, on our clock."""


@dataclass(slots=True, eq=False)
class _Copies:
    """Blocks a source said may be read, in order."""

    link: Link
    fetch: FetchId
    attempt: int
    blocks: deque[Descriptor] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class _Start:
    active: _Active


@dataclass(frozen=True, slots=True)
class _Stop:
    fetch: FetchId
    reason: str


@dataclass(frozen=True, slots=True)
class _Hold:
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class _Drop:
    ticket: Ticket
    reason: str


_Command = _Start | _Stop | _Hold | _Drop
_LinkKey = tuple[str, Epoch]
_ERRORS: dict[FailureCode, type[TransferError]] = {
    "lease_expired": LeaseExpired,
    "mismatch": LayoutMismatch,
    "failed": TransferError,
    "refused": TransferError,
    "closed": PeerLost,
}


class Sink:
    """One worker's side that fetches blocks. Public methods may be called from any thread."""

    def __init__(
        self,
        *,
        memory: BlockMemory,
        layout: KvLayout,
        worker: WorkerId,
        compat: str,
        transports: Sequence[str] = TRANSPORTS,
        allow_fallback: bool = True,
        lease_ttl_s: float = 6.0,
        tamper: Callable[[memoryview], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`transports` are tried in order; without `allow_fallback` only the first.

        `tamper` sees each slot after its bytes came and before they are verified: a fault for
        tests. Raises ValueError when memory and layout disagree or a transport is unknown.
        """
        if memory.block_bytes != layout.block_bytes:
            raise ValueError(
                f"layout: a block has {layout.block_bytes} bytes, the memory's {memory.block_bytes}"
            )
        unknown = set(transports) - {"memory", "shm", "tcp"}
        if unknown or not transports:
            raise ValueError(f"transports: {list(transports)}; known are memory, shm and tcp")
        self._memory = memory
        self._layout = layout
        self._worker = worker
        self._compat = compat
        self._transports = tuple(transports)
        self._allow_fallback = allow_fallback
        self._lease_ttl_s = lease_ttl_s
        self._tamper = tamper
        self._clock = clock
        self._ids = count(1)
        self._active: dict[FetchId, _Active] = {}
        self._links: dict[_LinkKey, Link] = {}
        self._copies: deque[_Copies] = deque()
        self._commands: deque[_Command] = deque()
        self._num_fetches = 0
        self._used: Counter[str] = Counter()
        self._door = threading.Lock()
        self._closing = threading.Event()
        self._context = ControlContext()
        self._poller = Poller()
        self._waker = Waker()
        self._poller.watch(self._waker.fileno())
        self._thread = threading.Thread(target=self._run, name="kv-sink", daemon=True)
        self._thread.start()

    # -- for the worker -------------------------------------------------------------------

    @property
    def transports_used(self) -> tuple[tuple[str, int], ...]:
        """Fetches landed so far by each transport."""
        return tuple(sorted(self._used.items()))

    @property
    def num_fetches(self) -> int:
        """Fetches that have not ended."""
        return self._num_fetches

    def hold(self, ticket: Ticket) -> None:
        """Keep a lease alive while its fetch must wait, until `fetch` or `drop`."""
        self._command(_Hold(ticket))

    def drop(self, ticket: Ticket, *, reason: str) -> None:
        """The ticket will not be fetched: free the blocks at the source at once."""
        self._command(_Drop(ticket, reason))

    def fetch(
        self,
        *,
        ticket: Ticket,
        slots: Sequence[Slot],
        deadline_s: float,
        on_end: Callable[[FetchEnd], None],
    ) -> FetchId:
        """Fetch these blocks of the ticket's lease; `deadline_s` is remaining time.

        `on_end` is called once, on the sink's thread, and must not block. Without slots the
        fetch waits for the source's note. Raises ValueError for slots that do not fit this pool
        or this ticket, CapacityError when closed or beyond MAX_FETCHES.
        """
        self._check(ticket, slots)
        fetch = FetchId(next(self._ids))
        now_s = self._clock()
        active = _Active(
            fetch=session.Fetch(
                fetch=fetch, lease=ticket.lease, slots=slots, num_tokens=ticket.num_tokens,
                block_tokens=self._layout.block_tokens, block_bytes=self._layout.block_bytes,
            ),
            ticket=ticket, slots=tuple(slots), on_end=on_end, started_s=now_s,
            deadline_s=now_s + deadline_s,
        )  # fmt: skip
        with self._door:
            if self._closing.is_set() or self._num_fetches >= MAX_FETCHES:
                raise CapacityError("the sink takes no more fetches")
            self._num_fetches += 1
            self._commands.append(_Start(active))
        self._waker.wake()
        return fetch

    def cancel(self, fetch: FetchId, *, reason: str = "cancelled") -> None:
        """End a fetch as Aborted, unless it has ended."""
        self._command(_Stop(fetch, reason))

    def close(self) -> None:
        """End every fetch as Aborted; leave no thread, socket or mapping."""
        self._closing.set()
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def _command(self, command: _Command) -> None:
        if not self._closing.is_set():
            self._commands.append(command)
            self._waker.wake()

    def _check(self, ticket: Ticket, slots: Sequence[Slot]) -> None:
        num_blocks = self._layout.num_blocks(ticket.num_tokens)
        for slot in slots:
            if not 0 <= slot.index < num_blocks:
                raise ValueError(f"slots: index {slot.index} of a lease of {num_blocks} blocks")
            if not 0 <= slot.block_id < self._memory.num_blocks:
                raise ValueError(f"slots: block_id {slot.block_id} is not in this pool")
        if len({s.index for s in slots}) < len(slots) or len({s.block_id for s in slots}) < len(
            slots
        ):
            raise ValueError("slots: an index or block_id comes twice")

    # -- on the sink's thread -------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                ready = self._poller.wait(self._sleep_s())
                self._waker.clear()
                self._turn(ready)
        except Exception:
            log.exception("kv sink stopped")
        finally:
            with self._door:
                self._closing.set()
            self._obey()
            for active in list(self._active.values()):
                self._follow(active, active.fetch.cancel("the sink closes"))
            for key in list(self._links):
                self._lose(key, PeerLost("the sink closes"))
            self._context.close()

    def _turn(self, ready: set[int]) -> None:
        self._obey()
        for key, link in list(self._links.items()):
            try:
                link.look(ready, now_s=self._clock())
                self._tend(link)
            except (TransferError, WireError) as error:
                self._lose(key, broken(error))
        self._copy()
        now_s = self._clock()
        for active in list(self._active.values()):
            if active.deadline_s <= now_s:
                waited_s = now_s - active.started_s
                late = TransferError(f"not landed within {waited_s:.3f} s, {active.fetch.stage}")
                self._follow(active, active.fetch.fail(late))

    def _sleep_s(self) -> float:
        if self._copies:
            return 0.0
        now_s = self._clock()
        ends = [now_s + _IDLE_S]
        ends += [active.deadline_s for active in self._active.values()]
        for link in self._links.values():
            if link.stage is not LinkStage.OPEN:
                ends.append(link.open_by_s)
            if link.leases:
                ends.append(max(link.renew_at_s, now_s + 0.001))
        return max(0.0, min(ends) - now_s)

    def _tend(self, link: Link) -> None:
        """Renew its leases, ask for what waits on it, and notice its silence."""
        now_s = self._clock()
        every_s = renew_every_s(self._lease_ttl_s)
        link.renew(now_s=now_s, every_s=every_s, remaining_s=self._lease_ttl_s)
        if link.stage is LinkStage.OPEN:
            for active in list(self._active.values()):
                if active.link is link and not active.asked:
                    active.asked = True
                    self._follow(active, active.fetch.start())
            if link.leases and now_s - link.heard_s > self._lease_ttl_s:
                raise PeerLost(f"the source has been silent for {now_s - link.heard_s:.1f} s")
            if not link.leases:
                link.heard_s = now_s
        elif now_s > link.open_by_s:
            raise PeerLost(f"no stream to {link.source} came up: still {link.stage}")

    def _obey(self) -> None:
        while self._commands:
            match self._commands.popleft():
                case _Start(active):
                    self._active[active.fetch.fetch] = active
                    self._begin(active)
                case _Stop(fetch, reason):
                    if fetch in self._active:
                        found = self._active[fetch]
                        self._follow(found, found.fetch.cancel(reason))
                case _Hold(ticket):
                    self._try_link(ticket)
                case _Drop(ticket, reason):
                    self._drop_lease(ticket, reason)

    def _begin(self, active: _Active) -> None:
        ticket = active.ticket
        try:
            active.link = self._link(ticket)
        except (TransferError, WireError) as failed:
            self._follow(active, active.fetch.fail(broken(failed)))
            return
        if ticket.layout != self._layout or ticket.compat != self._compat:
            mismatch = LayoutMismatch(f"{ticket.worker} serves another KV layout or model")
            self._follow(active, active.fetch.fail(mismatch))

    def _try_link(self, ticket: Ticket) -> None:
        try:
            self._link(ticket)
        except (TransferError, WireError) as error:
            log.warning("a lease cannot be held", extra={"why": str(error)})

    def _drop_lease(self, ticket: Ticket, reason: str) -> None:
        try:
            link = self._link(ticket)
            link.leases.discard(ticket.lease)
            link.say(Cancel(lease=ticket.lease, reason=reason[:2_000]))
        except (TransferError, WireError) as error:
            log.warning("a lease is left to expire", extra={"why": str(error)})

    def _link(self, ticket: Ticket) -> Link:
        """The link to the ticket's source, made if need be, and now renewing its lease."""
        key = (ticket.address, ticket.epoch)
        if key not in self._links:
            self._links[key] = Link(
                ticket, worker=self._worker, context=self._context, poller=self._poller,
                transports=self._transports, allow_fallback=self._allow_fallback, taker=self,
                on_word=self._hear, now_s=self._clock(),
            )  # fmt: skip
        link = self._links[key]
        if not link.leases:
            link.heard_s = self._clock()
        link.leases.add(ticket.lease)
        return link

    def _lose(self, key: _LinkKey, error: TransferError) -> None:
        link = self._links.pop(key)
        level = logging.INFO if self._closing.is_set() else logging.WARNING
        log.log(level, "link lost", extra={"source": link.source, "why": str(error)})
        link.lose()
        for active in list(self._active.values()):
            if active.link is link:
                self._follow(active, active.fetch.fail(error))

    def _hear(self, link: Link, message: Ready | Finish | FetchFailed | Renewed) -> None:
        if isinstance(message, Renewed):
            gone = {end.lease: end for end in message.gone}
            link.leases.difference_update(gone)
            for active in list(self._active.values()):
                if active.link is link and (end := gone.get(active.fetch.lease)):
                    self._follow(active, active.fetch.fail(_ERRORS[end.code](end.reason)))
            return
        found = self._active.get(FetchId(message.fetch))
        if found is None or found.link is not link:
            return
        match message:
            case Ready(attempt=attempt, blocks=blocks):
                copies = _Copies(link, found.fetch.fetch, attempt, deque(blocks))
                self._copies.append(copies)
            case Finish(attempt=attempt, note=note, since_s=since_s):
                found.written_s = self._clock() - since_s
                self._follow(found, found.fetch.note_arrived(attempt=attempt, note=note))
            case FetchFailed(code=code, reason=reason):
                self._follow(found, found.fetch.fail(_ERRORS[code](reason)))
            case _:
                assert_never(message)

    # -- bytes ----------------------------------------------------------------------------

    def begin_frame(
        self, fetch: FetchId, attempt: int, slot_block: int, block: Descriptor
    ) -> memoryview | None:
        """A pushing stream has bytes for a slot."""
        active = self._active.get(fetch)
        if active is None:
            return None
        into = self._begin_write(active, attempt, block)
        if into is None:
            return None
        if into != slot_block:
            error = TransferError(f"block {block.index} came for slot {slot_block}, not {into}")
            steps = active.fetch.end_write(block.index, broken=str(error))
            self._follow(active, [*steps, *active.fetch.fail(error)])
            return None
        return self._memory.block(into)

    def end_frame(self, fetch: FetchId, block: Descriptor) -> None:
        """A slot's bytes are complete."""
        active = self._active[fetch]
        self._settle(active, block, broken="")

    def _copy(self) -> None:
        """Copy a turn's worth of the blocks that may be read."""
        budget = _TURN_BYTES
        while self._copies and budget > 0:
            copies = self._copies[0]
            active = self._active.get(copies.fetch)
            if not copies.blocks or active is None or copies.link.stage is not LinkStage.OPEN:
                self._copies.popleft()
                continue
            if self._copy_block(active, copies, copies.blocks.popleft()):
                budget -= self._memory.block_bytes

    def _copy_block(self, active: _Active, copies: _Copies, block: Descriptor) -> bool:
        stream = copies.link.stream
        assert stream is not None
        source = stream.memory
        if source is None or block.block_id >= source.num_blocks:
            unknown = TransferError(f"the source named block {block.block_id}, which it has not")
            self._follow(active, active.fetch.fail(unknown))
            return False
        into = self._begin_write(active, copies.attempt, block)
        if into is None:
            return False
        before = source.generations[block.block_id]
        self._memory.copy_from(source, source_block=block.block_id, block=into)
        after = source.generations[block.block_id]
        stale = before != block.generation or after != block.generation
        self._settle(active, block, broken="the block has another generation" if stale else "")
        return True

    def _begin_write(self, active: _Active, attempt: int, block: Descriptor) -> int | None:
        try:
            return active.fetch.begin_write(attempt=attempt, block=block)
        except TransferError as error:
            self._follow(active, active.fetch.fail(error))
            return None

    def _settle(self, active: _Active, block: Descriptor, *, broken: str) -> None:
        """Verify a slot's bytes, now that its writer has stopped."""
        if not broken:
            slot = self._memory.block(active.fetch.slot_block(block.index))
            if self._tamper is not None:
                self._tamper(slot)
            broken = "" if checksum(slot) == block.checksum else "the checksum is another"
        if broken:
            log.warning("block rejected", extra={"index": block.index, "why": broken})
        self._follow(active, active.fetch.end_write(block.index, broken=broken))

    # -- what the state table answers -----------------------------------------------------

    def _follow(self, active: _Active, steps: Sequence[session.FetchStep]) -> None:
        """Carry out what the fetch's state table asks for."""
        for step in steps:
            match step:
                case session.SendFetch(attempt=attempt, slots=slots):
                    self._say(active, self._word(active, attempt, slots))
                case session.SendRelease():
                    self._say(active, Release(lease=active.fetch.lease))
                case session.SendCancel(reason=reason):
                    self._say(active, Cancel(lease=active.fetch.lease, reason=reason[:2_000]))
                case session.End():
                    self._end(active)
                case _:
                    assert_never(step)
        if active.fetch.over and not active.fetch.ended:
            self._stop_writers(active)

    def _stop_writers(self, active: _Active) -> None:
        if active.link is not None and active.link.stream is not None:
            active.link.stream.stop_writing(active.fetch.fetch)
        for index in active.fetch.writing:
            self._follow(active, active.fetch.end_write(index, broken="the fetch is over"))

    def _word(self, active: _Active, attempt: int, slots: tuple[Slot, ...]) -> FetchWord:
        return FetchWord(
            fetch=active.fetch.fetch, attempt=attempt, lease=active.fetch.lease,
            compat=self._compat, layout=self._layout, slots=slots,
        )  # fmt: skip

    def _say(self, active: _Active, message: FetchWord | Release | Cancel) -> None:
        """Tell the source, unless its link is lost: then it knows, or its lease runs out."""
        if active.link is None or active.link.stage is LinkStage.LOST:
            return
        try:
            active.link.say(message)
        except PeerLost as error:
            log.warning("a word to the source was lost", extra={"why": str(error)})

    def _end(self, active: _Active) -> None:
        del self._active[active.fetch.fetch]
        if active.link is not None:
            active.link.leases.discard(active.fetch.lease)
        end = self._outcome(active)
        if isinstance(end, Landed):
            self._used[end.transport] += 1
        with self._door:
            self._num_fetches -= 1
        try:
            active.on_end(end)
        except Exception:
            log.exception("the owner of a fetch failed at its end")

    def _outcome(self, active: _Active) -> FetchEnd:
        fetch, link = active.fetch, active.link
        if fetch.stage is FetchStage.FAILED:
            assert fetch.error is not None
            return Lost(fetch.error)
        if fetch.stage is FetchStage.ABORTED:
            return Aborted(fetch.reason)
        assert link is not None and link.stream is not None and fetch.note is not None
        fetch_s = self._clock() - active.started_s
        return Landed(
            note=fetch.note, transport=link.stream.transport, transport_why=link.why,
            num_blocks=fetch.num_slots, num_bytes=fetch.num_slots * self._memory.block_bytes,
            fetch_s=fetch_s, exposed_s=min(fetch_s, self._clock() - active.written_s),
        )  # fmt: skip
