"""Serves a worker's KV blocks to the sinks that hold leases on them.

The engine's observer opens a lease, says how far its tokens are written, finishes or fails it;
one thread ("kv-source") does the rest: checksums, sending, renewals, ends. Every lease ends
exactly once, told to `on_lease_end`; until then the owner must keep its blocks. After it nothing
here reads them again, but a sink on the same host may still be copying: it compares generations
and throws such a copy away. Does not know models, nor who asked for the request.
"""

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from kvtransfer.messages import (
    CONTROL_VERSION,
    MAX_NOTE_BYTES,
    Cancel,
    FailureCode,
    Fetch,
    FetchFailed,
    FetchId,
    Finish,
    Gone,
    Open,
    Opened,
    Ready,
    Refused,
    Release,
    Renew,
    Renewed,
    StreamWelcome,
    ToSource,
)
from kvtransfer.pool import BlockMemory, checksum
from kvtransfer.session import Lending, Refusal
from kvtransfer.transports.base import Listener
from kvtransfer.transports.control import ControlServer, Identity, Poller, Waker
from kvtransfer.transports.memory import MemoryListener
from kvtransfer.transports.shm import ShmListener
from kvtransfer.transports.tcp import TcpListener
from kvtransfer.visitors import Visitor, Visitors
from protocol.errors import CapacityError, TransferError, WireError
from protocol.ids import Epoch, LeaseId, WorkerId
from protocol.layout import KvLayout
from protocol.lease import Deadlines
from protocol.messages import Ticket

log = logging.getLogger(__name__)

TRANSPORTS: Final = ("memory", "shm", "tcp")
MAX_LEASES: Final = 65_536
_READY_BLOCKS: Final = 256
"""Most blocks named in one `Ready`."""
_TURN_BYTES: Final = 8 << 20
"""Most bytes summed and offered before control messages are looked at again: 0.3 ms."""
_QUEUED_BYTES: Final = 4 << 20
"""Most bytes waiting in one stream: they cannot be taken back without the sink noticing."""
_IDLE_S: Final = 1.0
_REMEMBERED_ENDS: Final = 1_024

EndReason = Literal["released", "expired", "failed", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnd:
    """The end of a lease: its blocks may be freed."""

    lease: LeaseId
    reason: EndReason
    detail: str
    transport: str
    """"" when nobody fetched."""
    num_blocks: int
    """Blocks offered, counting those offered again."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Opened:
    lease: LeaseId
    at_s: float


@dataclass(frozen=True, slots=True)
class _Published:
    lease: LeaseId
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Finished:
    lease: LeaseId
    note: bytes
    at_s: float


@dataclass(frozen=True, slots=True)
class _Failed:
    lease: LeaseId
    reason: str


_Command = _Opened | _Published | _Finished | _Failed
_CODES: dict[EndReason, FailureCode] = {
    "released": "lease_expired",
    "expired": "lease_expired",
    "failed": "failed",
    "closed": "closed",
}


class Source:
    """One worker's side that lends blocks. Public methods may be called from any one thread."""

    def __init__(
        self,
        *,
        memory: BlockMemory,
        layout: KvLayout,
        worker: WorkerId,
        epoch: Epoch,
        compat: str,
        on_lease_end: Callable[[LeaseEnd], None],
        host: str = "127.0.0.1",
        advertised_host: str = "",
        lease_ttl_s: float = 6.0,
        transports: Sequence[str] = TRANSPORTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen at once, on free ports of `host`; `advertised_host` is what tickets say when
        that differs. `on_lease_end` is called on the source's thread and must not block.

        Raises ValueError when memory and layout disagree, TransferError when it cannot listen.
        """
        if memory.block_bytes != layout.block_bytes:
            raise ValueError(
                f"layout: a block has {layout.block_bytes} bytes, the memory's {memory.block_bytes}"
            )
        self._memory = memory
        self._layout = layout
        self._worker = worker
        self._epoch = epoch
        self._compat = compat
        self._lease_ttl_s = lease_ttl_s
        self._on_lease_end = on_lease_end
        self._clock = clock
        self._lendings: dict[LeaseId, Lending] = {}
        self._holders: dict[LeaseId, Visitor] = {}
        self._finished_s: dict[LeaseId, float] = {}
        self._busy: OrderedDict[LeaseId, None] = OrderedDict()
        """Leases that may have something to send."""
        self._ended: OrderedDict[LeaseId, Gone] = OrderedDict()
        self._deadlines: Deadlines[LeaseId] = Deadlines()
        self._commands: deque[_Command] = deque()
        self._closing = threading.Event()
        self._door = threading.Lock()
        """Held to let a lease in, and to close: none slips in after the last has ended."""
        self._listen(host, advertised_host or host, transports)
        self._thread = threading.Thread(target=self._run, name="kv-source", daemon=True)
        self._thread.start()

    def _listen(self, host: str, advertised_host: str, transports: Sequence[str]) -> None:
        self._control = ControlServer(host)
        self.address = f"tcp://{advertised_host}:{self._control.port}"
        self.shm_address = ""
        data_port = 0
        listeners: list[Listener] = []
        try:
            if "memory" in transports:
                listeners.append(MemoryListener(self._memory, epoch=self._epoch))
            if "shm" in transports:
                shm = ShmListener(self._memory, epoch=self._epoch)
                self.shm_address = shm.address
                listeners.append(shm)
            if "tcp" in transports:
                tcp = TcpListener(host)
                data_port = tcp.port
                listeners.append(tcp)
        except (TransferError, OSError):
            for listener in listeners:
                listener.close()
            self._control.close()
            raise
        self._poller = Poller()
        self._waker = Waker()
        self._poller.watch(self._waker.fileno())
        self._poller.watch(self._control)
        self._visitors = Visitors(
            control=self._control,
            listeners=listeners,
            poller=self._poller,
            opened=Opened(epoch=self._epoch, data_host=advertised_host, data_port=data_port),
            welcome=StreamWelcome(
                version=CONTROL_VERSION,
                epoch=self._epoch,
                num_blocks=self._memory.num_blocks,
                block_bytes=self._memory.block_bytes,
            ),
            on_lost=self._visitor_lost,
        )

    # -- for the owner of the blocks ------------------------------------------------------

    @property
    def num_leases(self) -> int:
        return len(self._lendings)

    def open_lease(self, *, block_ids: Sequence[int], num_tokens: int) -> Ticket:
        """Lend these blocks, which will hold the KV of `num_tokens` tokens in this order.

        Raises ValueError for blocks that do not fit, CapacityError beyond MAX_LEASES.
        """
        if len(block_ids) != self._layout.num_blocks(num_tokens):
            raise ValueError(f"block_ids: {len(block_ids)} blocks for {num_tokens} tokens")
        if any(not 0 <= block < self._memory.num_blocks for block in block_ids):
            raise ValueError(f"block_ids: not all below {self._memory.num_blocks}")
        lease = LeaseId(secrets.randbits(63))
        lending = Lending(
            lease=lease,
            block_ids=block_ids,
            generations=[self._memory.generations[block] for block in block_ids],
            num_tokens=num_tokens,
            block_tokens=self._layout.block_tokens,
            block_bytes=self._layout.block_bytes,
        )
        with self._door:
            if len(self._lendings) >= MAX_LEASES or self._closing.is_set():
                raise CapacityError("the source takes no more leases")
            self._lendings[lease] = lending
        self._command(_Opened(lease, self._clock()))
        return Ticket(
            worker=self._worker, epoch=self._epoch, lease=lease, address=self.address,
            shm_address=self.shm_address, layout=self._layout, compat=self._compat,
            num_tokens=num_tokens,
        )  # fmt: skip

    def publish(self, lease: LeaseId, num_tokens: int) -> None:
        """KV of the first `num_tokens` tokens is written. A lease that has ended is no error."""
        lending = self._lendings.get(lease)
        if lending is not None and not 0 <= num_tokens <= lending.num_tokens:
            raise ValueError(f"num_tokens {num_tokens} of a lease of {lending.num_tokens}")
        self._command(_Published(lease, num_tokens))

    def finish(self, lease: LeaseId, note: bytes) -> None:
        """Everything is written; `note` is told to the fetcher with the last block."""
        if len(note) > MAX_NOTE_BYTES:
            raise ValueError(f"note of {len(note)} bytes exceeds {MAX_NOTE_BYTES}")
        self._command(_Finished(lease, note, self._clock()))

    def fail(self, lease: LeaseId, reason: str) -> None:
        """The blocks will never be written, or are wanted back. Ends the lease as "failed"."""
        self._command(_Failed(lease, reason))

    def close(self) -> None:
        """End every lease as "closed", tell their fetchers, leave no thread or socket."""
        self._closing.set()
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def _command(self, command: _Command) -> None:
        if not self._closing.is_set():
            self._commands.append(command)
            self._waker.wake()

    # -- on the source's thread -----------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                ready = self._poller.wait(self._sleep_s())
                self._waker.clear()
                self._turn(ready)
        except Exception:
            log.exception("kv source stopped")
        finally:
            with self._door:
                self._closing.set()
            for lending in list(self._lendings.values()):
                self._end(lending, "closed", "the source closes")
            self._visitors.close()
            self._control.close()

    def _turn(self, ready: set[int]) -> None:
        self._visitors.look(ready, now_s=self._clock())
        for identity, message in self._control.receive():
            self._obey()  # a lease opened a moment ago may be asked for already
            self._hear(identity, message)
        self._obey()
        self._serve()
        for lease in self._deadlines.expired(self._clock()):
            self._end(self._lendings[lease], "expired", "nobody renewed it")

    def _sleep_s(self) -> float:
        if any(self._can_serve(self._lendings[lease]) for lease in self._busy):
            return 0.0
        now_s = self._clock()
        waits = (self._deadlines.next_in_s(now_s), self._visitors.next_in_s(now_s), _IDLE_S)
        return min(wait for wait in waits if wait is not None)

    def _obey(self) -> None:
        while self._commands:
            command = self._commands.popleft()
            lending = self._lendings.get(command.lease)
            if lending is None:
                continue
            match command:
                case _Opened(lease, at_s):
                    self._deadlines.set(lease, now_s=at_s, remaining_s=self._lease_ttl_s)
                case _Published(lease, num_tokens):
                    lending.publish(num_tokens)
                    self._busy[lease] = None
                case _Finished(lease, note, at_s):
                    lending.finish(note)
                    self._finished_s[lease] = at_s
                    self._busy[lease] = None
                case _Failed(_, reason):
                    self._end(lending, "failed", reason)
                case _:
                    assert_never(command)

    def _hear(self, identity: Identity, message: ToSource | WireError) -> None:
        visitor = self._visitors.get(identity)
        if isinstance(message, WireError):
            log.warning("control message refused", extra={"why": str(message)})
            self._visitors.refuse(identity, Refused(code="protocol", reason=str(message)))
        elif isinstance(message, Open):
            self._visitors.open(identity, message, now_s=self._clock())
        elif visitor is None:
            self._visitors.refuse(identity, Refused(code="protocol", reason="open first"))
        else:
            self._answer(visitor, message)

    def _answer(self, visitor: Visitor, message: Fetch | Renew | Release | Cancel) -> None:
        match message:
            case Fetch():
                self._fetch(visitor, message)
            case Renew(leases=leases, remaining_s=remaining_s):
                gone = tuple(x for x in leases if not self._renew(visitor, x, remaining_s))
                self._visitors.send(visitor, Renewed(gone=tuple(map(self._how, gone))))
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
        remaining_s = min(remaining_s, self._lease_ttl_s)
        return self._deadlines.renew(lease, now_s=self._clock(), remaining_s=remaining_s)

    def _hold(self, visitor: Visitor, lease: LeaseId) -> bool:
        """Make the visitor the one holder of the lease; False if another one is."""
        if self._holders.setdefault(lease, visitor) is not visitor:
            return False
        visitor.leases.add(lease)
        return True

    def _fetch(self, visitor: Visitor, message: Fetch) -> None:
        refused = self._why_not(visitor, message)
        if refused is not None:
            code, reason = refused
            self._visitors.send(
                visitor,
                FetchFailed(fetch=message.fetch, attempt=message.attempt, code=code, reason=reason),
            )
            return
        lease = message.lease
        self._deadlines.renew(lease, now_s=self._clock(), remaining_s=self._lease_ttl_s)
        self._busy[lease] = None

    def _why_not(self, visitor: Visitor, message: Fetch) -> tuple[FailureCode, str] | None:
        """Take a fetch up, or say why it cannot be served."""
        lending = self._lendings.get(message.lease)
        if lending is None:
            how = self._how(message.lease)
            return how.code, how.reason
        if message.compat != self._compat or message.layout != self._layout:
            return "mismatch", "the fetcher's KV layout or model is another"
        if visitor.stream is None:
            return "refused", "no stream is open"
        if not self._hold(visitor, message.lease):
            return "refused", "another worker holds this lease"
        fetch = FetchId(message.fetch)
        try:
            if lending.fetched(fetch=fetch, attempt=message.attempt, slots=message.slots):
                visitor.stream.drop(fetch)
        except Refusal as error:
            return "refused", str(error)
        return None

    def _can_serve(self, lending: Lending) -> bool:
        visitor = self._holders.get(lending.lease)
        if visitor is None or visitor.stream is None:
            return False
        return lending.has_ready and visitor.stream.queued_bytes < _QUEUED_BYTES

    def _serve(self) -> None:
        """One turn for everyone who may have something to send."""
        for lease in list(self._busy):
            lending = self._lendings.get(lease)
            if lending is None:
                continue
            self._send_note(lending)
            if lending.over:
                continue
            if self._can_serve(lending):
                self._send_blocks(lending)
            elif not lending.has_ready:
                self._busy.pop(lease, None)

    def _send_note(self, lending: Lending) -> None:
        visitor = self._holders.get(lending.lease)
        note = lending.take_note()
        if note is None or visitor is None or lending.fetch is None:
            return
        since_s = max(0.0, self._clock() - self._finished_s[lending.lease])
        self._visitors.send(
            visitor,
            Finish(fetch=lending.fetch, attempt=lending.attempt, note=note, since_s=since_s),
        )

    def _send_blocks(self, lending: Lending) -> None:
        visitor = self._holders[lending.lease]
        stream, fetch = visitor.stream, lending.fetch
        assert stream is not None and fetch is not None
        limit = min(_READY_BLOCKS, max(1, _TURN_BYTES // self._memory.block_bytes))
        indices = lending.take_ready(limit)
        for index in indices:
            block_id = lending.block_ids[index]
            if self._memory.generations[block_id] != lending.generations[index]:
                self._end(lending, "failed", f"block {block_id} was given to another request")
                return
        blocks = tuple(
            lending.describe(index, checksum=checksum(self._memory.block(lending.block_ids[index])))
            for index in indices
        )
        if not stream.pushes:
            ready = Ready(fetch=fetch, attempt=lending.attempt, blocks=blocks)
            self._visitors.send(visitor, ready)
            return
        for block in blocks:
            body = self._memory.block(block.block_id)
            stream.push(fetch, lending.attempt, lending.slots[block.index], block, body)
        self._visitors.flush(visitor)

    def _visitor_lost(self, visitor: Visitor, why: str) -> None:
        for lease in list(visitor.leases):
            if lease in self._lendings:
                self._end(self._lendings[lease], "expired", f"{visitor.worker} is gone: {why}")

    def _end(self, lending: Lending, reason: EndReason, detail: str) -> None:
        """The one place where a lease ends."""
        if lending.over:
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
        code = _CODES[reason]
        self._remember(Gone(lease=lease, code=code, reason=f"lease {reason}: {detail}"[:2_000]))
        transport = self._let_go(lending, visitor, reason, detail)
        end = LeaseEnd(
            lease=lease, reason=reason, detail=detail, transport=transport,
            num_blocks=lending.num_sent, num_bytes=lending.num_sent * self._memory.block_bytes,
        )  # fmt: skip
        try:
            self._on_lease_end(end)
        except Exception:
            log.exception("the owner of a lease failed at its end", extra={"lease": lease})

    def _let_go(
        self, lending: Lending, visitor: Visitor | None, reason: EndReason, detail: str
    ) -> str:
        """Stop reading for the holder of a lease and tell it why; its transport."""
        if visitor is None:
            return ""
        visitor.leases.discard(lending.lease)
        if lending.fetch is None or visitor.stream is None:
            return ""
        transport = visitor.stream.transport
        visitor.stream.drop(lending.fetch)
        if reason != "released":
            self._visitors.send(
                visitor,
                FetchFailed(
                    fetch=lending.fetch, attempt=lending.attempt, code=_CODES[reason],
                    reason=detail[:2_000],
                ),
            )  # fmt: skip
        return transport

    def _how(self, lease: LeaseId) -> Gone:
        """Why a lease cannot be had."""
        why = "another worker holds it" if lease in self._lendings else "no such lease"
        return self._ended.get(lease) or Gone(lease=lease, code="lease_expired", reason=why)

    def _remember(self, how: Gone) -> None:
        self._ended[how.lease] = how
        while len(self._ended) > _REMEMBERED_ENDS:
            self._ended.popitem(last=False)
