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
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np

from kvtransfer.device.driver import Mark
from kvtransfer.endings import LeaseEnd
from kvtransfer.memory.pool import WRITTEN, Pool, check_block_bytes
from kvtransfer.messages import CONTROL_VERSION, MAX_NOTE_BYTES, Opened, PlaneAddress, StreamWelcome
from kvtransfer.plan import NO_BLOCK
from kvtransfer.source.borrowing import AskedLoan, BorrowId
from kvtransfer.source.lease import Lease
from kvtransfer.source.leases import LeaseTable
from kvtransfer.source.means import SourceMeans
from kvtransfer.source.sinks import ConnectedSink, Sinks
from kvtransfer.thread_calls import ThreadCalls
from kvtransfer.transports import planes
from kvtransfer.transports.base import HelpCopy, Listener, ListenOptions, Unreachable
from kvtransfer.transports.control import ControlServer, Poller
from kvtransfer.transports.polling import Ticker
from kvtransfer.transports.tcp_socket import resolved
from protocol.errors import TransferError
from protocol.ids import BlockHash, Epoch, LeaseId, WorkerId
from protocol.layout import Layout
from protocol.messages import Ticket
from protocol.process.listening import bracketed

log = logging.getLogger(__name__)

_IDLE_S: Final = 1.0


class Source:
    """One worker's side that lends blocks. Public methods may be called from any thread, `close`
    from any but the source's own; calls about one lease count in the order they were made.

    `advertised_host` is what tickets say when that differs from `host`. `help_copy`: whether this
    process copies along when a sink on the same host fetches. `socket_folder`: where sinks of the
    host find us; by abstract sockets without one. `on_lease_end` is called on the source's thread
    and must not block, nor must `on_borrow`, which is told there of prefixes that sinks ask this
    source for, each to be answered by `lend` or `refuse_loan`; without it none is lent. So is
    `on_broken` when that thread ends by a fault of ours: this source serves nobody then.
    """

    def __init__(
        self, *, memory: Pool, layout: Layout, worker: WorkerId, epoch: Epoch, compat: str,
        on_lease_end: Callable[[LeaseEnd], None], host: str = "127.0.0.1",
        advertised_host: str = "", port: int = 0, lease_ttl_s: float = 6.0,
        transports: Sequence[str] | None = None, help_copy: HelpCopy = "auto",
        socket_folder: str = "",
        on_borrow: Callable[["Source", AskedLoan], None] | None = None,
        on_broken: Callable[[str], None] = lambda why: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Listen at once: on `port` of `host` and, over TCP, on those that follow it, in the order
        of `planes.PORTS`; 0: on free ones.

        Raises ValueError when memory and layout disagree, TransferError when it cannot listen.
        """
        check_block_bytes(memory, layout)
        self._means = SourceMeans(
            memory=memory, layout=layout, worker=worker, epoch=epoch, compat=compat,
            lease_ttl_s=lease_ttl_s, on_lease_end=on_lease_end, clock=clock,
            on_borrow=None if on_borrow is None else partial(on_borrow, self),
        )  # fmt: skip
        self._advertised_host = resolved(advertised_host or host)
        self._on_broken = on_broken
        self._unwritten: deque[tuple[Mark, Callable[[], None]]] = deque()
        """What to do once the engine's device has got that far, in order."""
        self._help_copy: HelpCopy = help_copy
        self._socket_folder = socket_folder
        transports = planes.of_pool(memory) if transports is None else transports
        planes.check(transports)
        planes.prepare(transports)
        self._listen(host, port, transports)
        self._leases = LeaseTable(self._means, self._connect_sinks)
        self._thread = threading.Thread(target=self._run, name="kv-source", daemon=True)
        self._thread.start()

    @property
    def num_leases(self) -> int:
        """Leases that have not ended."""
        return len(self._leases)

    @property
    def epoch(self) -> Epoch:
        """Of the worker's incarnation whose blocks these are."""
        return self._means.epoch

    @property
    def lends_prefixes(self) -> bool:
        """Sinks may ask for what a prefix cache has."""
        return self._means.on_borrow is not None

    def num_sent(self, lease: LeaseId) -> int:
        """Blocks sent so far under a lease; 0 once it has ended."""
        return self._leases.num_sent(lease)

    def open_lease(self, *, block_ids: Sequence[int], num_tokens: int) -> Ticket:
        """Lend these blocks, which will hold the KV of `num_tokens` tokens in this order: of
        several KV groups, token block by token block. -1 in place of one that is not lent, because
        a window leaves its tokens behind; a fetch that needs it is refused.

        Raises ValueError for blocks that do not fit, CapacityError when closed or too many.
        """
        lent = self._add_lease(block_ids, num_tokens)
        self._calls.add(partial(self._leases.start_term, lent.id, self._means.clock()))
        return Ticket(
            worker=self._means.worker, epoch=self._means.epoch, lease=lent.id, address=self.address,
            layout=self._means.layout, compat=self._means.compat, num_tokens=num_tokens,
        )  # fmt: skip

    def lend(
        self, borrow: BorrowId, *, block_ids: Sequence[int], num_tokens: int, last: BlockHash
    ) -> LeaseId:
        """Lend these to whoever asked, from the first token of what it asked for on, written as of
        `publish`; `last` is the hash of the last. The lease ends as any other, at the latest after
        LOAN_S; at once where nobody waits for it any more. Raises as `open_lease`."""
        lease = self._add_lease(block_ids, num_tokens).id
        self._calls.add(partial(self._leases.give_loan, borrow, lease, last))
        self.finish(lease, b"")
        return lease

    def refuse_loan(self, borrow: BorrowId, reason: str) -> None:
        """Nothing of what was asked for is lent."""
        self._calls.add(partial(self._leases.refuse_loan, borrow, reason))

    def publish(self, lease: LeaseId, num_tokens: int, *, awaited: bool = False) -> None:
        """KV of the first `num_tokens` tokens is written, once the device has done what the
        calling thread's stream was given so far; `awaited`: the caller has seen it done, and later
        work of that stream need not be waited for. A lease that has ended is no error."""
        most = self._leases.num_tokens(lease)
        if most is not None and not 0 <= num_tokens <= most:
            raise ValueError(f"num_tokens: {num_tokens} of a lease of {most}")
        self._ask_once_written(awaited, partial(self._leases.publish_tokens, lease, num_tokens))

    def finish(self, lease: LeaseId, note: bytes, *, awaited: bool = False) -> None:
        """Everything is written; the fetcher gets `note` after it. `awaited` as in `publish`."""
        if len(note) > MAX_NOTE_BYTES:
            raise ValueError(f"note: {len(note)} bytes exceed {MAX_NOTE_BYTES}")
        call = partial(self._leases.finish_lease, lease, note, self._means.clock())
        self._ask_once_written(awaited, call)

    def fail(self, lease: LeaseId, reason: str) -> None:
        """The blocks will never be written, or are wanted back. Ends the lease as "failed"."""
        self._calls.add(partial(self._leases.fail_lease, lease, reason))

    def close(self) -> None:
        """End every lease as "closed", tell their fetchers, leave no thread or socket."""
        self._calls.refuse_more()
        self._thread.join()
        self._calls.close()

    def _add_lease(self, block_ids: Sequence[int], num_tokens: int) -> Lease:
        memory, layout = self._means.memory, self._means.layout
        if len(block_ids) != layout.num_blocks(num_tokens):
            raise ValueError(f"block_ids: {len(block_ids)} blocks for {num_tokens} tokens")
        blocks_B = np.asarray(block_ids, np.int64)
        if len(blocks_B) and not -1 <= blocks_B.min() <= blocks_B.max() < memory.num_blocks:
            raise ValueError(f"block_ids: not all below {memory.num_blocks}")
        lent_B = blocks_B >= 0
        generations_B = np.zeros(len(blocks_B), np.uint64)
        generations_B[lent_B] = memory.generations_N[blocks_B[lent_B]]
        lent = Lease(
            lease_id=LeaseId(1 + secrets.randbits(62)), num_tokens=num_tokens,
            block_ids=np.where(lent_B, blocks_B, NO_BLOCK), generations=generations_B,
            block_tokens=layout.block_tokens, num_groups=layout.num_groups,
        )  # fmt: skip
        self._leases.add_lease(lent)
        return lent

    def _ask_once_written(self, awaited: bool, call: Callable[[], None]) -> None:
        mark = WRITTEN if awaited else self._means.memory.mark()
        self._calls.add(partial(self._unwritten.append, (mark, call)))

    def _listen(self, host: str, port: int, transports: Sequence[str]) -> None:
        self._control = ControlServer(host, port)
        self.address = f"tcp://{bracketed(self._advertised_host)}:{self._control.port}"
        self._listeners: list[Listener] = []
        try:
            for name in transports:
                try:
                    self._listeners.append(self._listener(name, host, port))
                except Unreachable as error:
                    log.info("transport not served", extra={"transport": name, "why": str(error)})
        except (TransferError, OSError):
            for listener in self._listeners:
                listener.close()
            self._control.close()
            raise
        self._poller = Poller()
        self._calls = ThreadCalls()
        self._poller.watch(self._calls.fileno())
        self._poller.watch(self._control)
        self._number = self._control.number
        self._ticker = Ticker()
        self._poller.watch(self._ticker.fileno())

    def _connect_sinks(self, on_lost: Callable[[ConnectedSink, str], None]) -> Sinks:
        planes, memory = _addresses(self._listeners, self._advertised_host), self._means.memory
        return Sinks(
            control=self._control, listeners=self._listeners, poller=self._poller,
            opened=Opened(epoch=self._means.epoch, planes=planes),
            welcome=StreamWelcome(
                version=CONTROL_VERSION, epoch=self._means.epoch,
                num_blocks=memory.num_blocks, block_bytes=memory.block_bytes,
            ),
            sum_kinds=memory.sum_kinds, on_lost=on_lost, clock=self._means.clock,
        )  # fmt: skip

    def _listener(self, transport: str, host: str, port: int) -> Listener:
        options = ListenOptions(
            host=host, port=planes.port_of(transport, port), epoch=self._means.epoch,
            help_copy=self._help_copy, socket_folder=self._socket_folder,
        )  # fmt: skip
        return planes.listen(transport, self._means.memory, options)

    # -- on the source's thread -----------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._calls.is_closing:
                ready = self._poller.wait(self._sleep_s())
                self._calls.clear_wake(ready)
                if self._ticker.fileno() in ready:
                    self._ticker.clear()
                self._leases.sinks.receive_ready(ready)
                heard = self._control.receive() if self._number in ready else ()
                for identity, message in heard:
                    self._make_calls()  # a lease opened a moment ago may be asked for already
                    self._leases.answer_message(identity, message)
                self._make_calls()
                self._leases.run_turn()
                self._ticker.run(bool(self._unwritten) or self._leases.awaits_device)
        except Exception as error:
            log.exception("the kv source stopped")
            self._on_broken(f"the kv source is broken: {error}")
        finally:
            self._calls.refuse_more()
            self._leases.close()
            self._leases.sinks.close()
            self._control.close()
            self._ticker.close()
            self._poller.close()

    def _sleep_s(self) -> float:
        sleep_s = self._leases.sleep_s(_IDLE_S)
        next_s = self._leases.sinks.next_in_s()
        return sleep_s if next_s is None else min(sleep_s, next_s)

    def _make_calls(self) -> None:
        """Those asked for, and of what the engine said of its bytes, what its device has done."""
        self._calls.make_all()
        while self._unwritten and self._unwritten[0][0].happened():
            self._unwritten.popleft()[1]()


def _addresses(listeners: Sequence[Listener], host: str) -> tuple[PlaneAddress, ...]:
    """Where sinks connect; a listener that has only a port is at `host`, whose name is looked up
    here: a sink would do it on the thread that renews its leases, and refuses."""
    host = bracketed(host)
    return tuple(PlaneAddress(x.transport, x.address.replace("*", host, 1)) for x in listeners)
