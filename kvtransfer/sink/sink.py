"""Fetches KV blocks from other workers' sources into named slots of this worker's pool.

One thread ("kv-sink") asks, receives, verifies, renews the leases and tells `on_end` exactly once
per fetch, when nothing writes into its slots any more. Until then the slots belong to the sink.
Does not retry on another source: that is the router's choice.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvtransfer.chunk import PIECE, describe_pieces
from kvtransfer.endings import FetchEnd
from kvtransfer.memory.pool import Pool
from kvtransfer.messages import MAX_BORROWED_TOKENS, NO_LEASE, FetchId
from kvtransfer.plan import NO_BLOCK, Plan, ascending, plan
from kvtransfer.sink.events import SinkEvent
from kvtransfer.sink.fetch import Fetch
from kvtransfer.sink.fetches import FetchTable
from kvtransfer.sink.means import SinkMeans
from kvtransfer.sink.running_fetch import AskedPrefix, RunningFetch
from kvtransfer.thread_calls import ThreadCalls
from kvtransfer.transports import planes
from kvtransfer.transports.control import Poller
from protocol.errors import CapacityError, LayoutMismatch
from protocol.ids import BlockHash, WorkerId
from protocol.layout import Layout
from protocol.messages import PrefixSource, Ticket

log = logging.getLogger(__name__)

MAX_FETCHES: Final = 65_536
MAX_SLOTS: Final = 262_144
"""Of one fetch: they pack to 2 MB, half of what a control message may have."""
_IDLE_S: Final = 1.0
_LOOKS: Final = 32
"""At the streams, while spinning, for each at the control links."""


class Sink:
    """One worker's side that fetches blocks. Public methods may be called from any thread,
    `close` from any but the sink's own.

    `transports` are tried in order, all that suit the memory unless told; without
    `allow_fallback` only the first. `tcp_lanes`: connections of one TCP stream, or 0 for as many
    as suit the network. `on_quiet` returns blocks that an end named as quarantined, on the sink's
    thread. `on_event` hears there of links, retries and rejected blocks. `spin_s`: how long the
    thread looks for news without sleeping after it was busy, while fetches run: a small block
    landed after 451 us instead of 553, for a core. `on_broken` is told, on the sink's thread, when
    that ends by a fault of ours: this sink is of no use any more.
    """

    def __init__(
        self, *, memory: Pool, layout: Layout, worker: WorkerId, compat: str,
        transports: Sequence[str] | None = None, allow_fallback: bool = True,
        lease_ttl_s: float = 6.0, tcp_lanes: int = 0,
        on_quiet: Callable[[Sequence[int]], None] = lambda block_ids: None,
        on_event: Callable[[SinkEvent], None] = lambda event: None,
        spin_s: float = 0.0, on_broken: Callable[[str], None] = lambda why: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Raises ValueError when memory and layout disagree or a transport is unknown."""
        transports = planes.of_pool(memory) if transports is None else transports
        planes.check(transports)
        planes.prepare(transports)
        self._means = SinkMeans(
            memory=memory, layout=layout, worker=worker, compat=compat,
            transports=tuple(transports), allow_fallback=allow_fallback,
            lease_ttl_s=lease_ttl_s, tcp_lanes=tcp_lanes, on_quiet=on_quiet,
            on_event=on_event, clock=clock,
        )  # fmt: skip
        self._on_broken = on_broken
        self._spin_s = spin_s
        self._ids = count(1)
        self._num_fetches = 0
        self._lock = threading.Lock()
        """Held to add a fetch, and to close: none is added after the last has ended."""
        self._poller = Poller()
        self._calls = ThreadCalls()
        self._poller.watch(self._calls.fileno())
        self._fetches = FetchTable(self._means, poller=self._poller)
        self._thread = threading.Thread(target=self._run, name="kv-sink", daemon=True)
        self._thread.start()

    @property
    def num_fetches(self) -> int:
        """Fetches that have not ended."""
        return self._num_fetches

    def hold(self, ticket: Ticket) -> None:
        """Keep a lease alive while its fetch must wait, until `fetch` or `drop`."""
        self._calls.add(partial(self._fetches.hold_lease, ticket))

    def drop(self, ticket: Ticket, *, reason: str) -> None:
        """The ticket will not be fetched: free the blocks at the source at once."""
        self._calls.add(partial(self._fetches.drop_lease, ticket, reason))

    def fetch(
        self, *, ticket: Ticket, indices: ArrayLike, block_ids: ArrayLike, deadline_s: float,
        on_end: Callable[[FetchEnd], None], heads: range | None = None,
    ) -> FetchId:  # fmt: skip
        """Fetch these blocks of the ticket's lease, `indices[i]` into block `block_ids[i]` of our
        pool; indices count from token 0 in our layout's blocks. `deadline_s` is remaining time.

        `heads` are those of our layout to fetch from this source, all by default: fetches from
        several tensor-parallel ranks may fill the same blocks when no head is in two of them
        (`kvtransfer.plan.cover`). Each has its own end; a block is whole when all have landed,
        and nobody writes into it when all have ended and none names it as quarantined.

        `on_end` is called once, on the sink's thread, and must not block. Without indices the
        fetch waits for the source's note. Raises ValueError for slots that do not fit this pool
        or this ticket, CapacityError when closed or beyond MAX_FETCHES.
        """
        slots = self._checked_slots(ticket, indices, block_ids)
        ours = self._means.layout.heads
        if heads is not None and not (heads and heads.start in ours and heads[-1] in ours):
            raise ValueError(f"heads: {heads} are not among ours, {ours}")
        found, pieces_S = self._describe(ticket, heads, *slots)
        return self._start(ticket, found, pieces_S, deadline_s, on_end, heads=heads)

    def pull(
        self, source: PrefixSource, *, seed: BlockHash, token_ids: ArrayLike,
        hashes: Sequence[BlockHash], first_block: int, block_ids: ArrayLike, deadline_s: float,
        on_end: Callable[[FetchEnd], None],
    ) -> FetchId:  # fmt: skip
        """Ask a source to lend what its prefix cache has of these tokens, whole blocks from token 0
        with these hashes, in the chain that begins with `seed`, and fetch of it the blocks from
        `first_block` on, into `block_ids`. Of a layout of one KV group, the same at both ends.

        It may lend less than that: the end tells how many blocks came, `Lost` with NotLent when
        none would. Otherwise as `fetch`.
        """
        layout, token_ids_T = self._means.layout, np.asarray(token_ids, np.int64)
        slots_S = np.asarray(block_ids, np.int64)
        _check(token_ids_T, "token_ids", NO_BLOCK)
        _check(slots_S, "block_ids", self._means.memory.num_blocks)
        num_blocks = first_block + len(slots_S)
        if layout.num_groups != 1 or len(token_ids_T) != num_blocks * layout.block_tokens:
            raise ValueError(f"token_ids: {len(token_ids_T)} for {num_blocks} blocks")
        if len(hashes) != num_blocks:
            raise ValueError(f"hashes: {len(hashes)} for {num_blocks} blocks")
        if len(token_ids_T) > MAX_BORROWED_TOKENS:
            raise ValueError(f"token_ids: {len(token_ids_T)}, at most {MAX_BORROWED_TOKENS}")
        ticket = Ticket(
            worker=source.worker, epoch=source.epoch, lease=NO_LEASE, address=source.address,
            layout=layout, compat=self._means.compat, num_tokens=0,
        )  # fmt: skip
        prefix = AskedPrefix(
            seed=seed, token_ids_T=token_ids_T.astype(np.uint32), hashes=tuple(hashes),
            first_block=first_block, slots_S=slots_S.astype(np.uint32),
        )  # fmt: skip
        return self._start(
            ticket, plan(layout, layout), np.empty(0, PIECE), deadline_s, on_end, prefix=prefix
        )

    def cancel(self, fetch: FetchId, *, reason: str = "cancelled") -> None:
        """End a fetch as Aborted, unless it has ended."""
        self._calls.add(partial(self._fetches.cancel_fetch, fetch, reason))

    def close(self) -> None:
        """End every fetch as Aborted; leave no thread, socket or mapping."""
        with self._lock:
            self._calls.refuse_more()
        self._thread.join()
        self._calls.close()

    def _start(
        self, ticket: Ticket, found: Plan | LayoutMismatch, pieces_S: NDArray[Any],
        deadline_s: float, on_end: Callable[[FetchEnd], None], *, heads: range | None = None,
        prefix: AskedPrefix | None = None,
    ) -> FetchId:  # fmt: skip
        lease_id = None if prefix is not None else ticket.lease
        fetch = Fetch(fetch_id=FetchId(next(self._ids)), lease_id=lease_id, pieces_S=pieces_S)
        now_s = self._means.clock()
        running = RunningFetch(
            fetch, ticket, found, partial(self._end_fetch, on_end), started_s=now_s,
            deadline_s=now_s + deadline_s, heads=heads, prefix=prefix,
        )  # fmt: skip
        with self._lock:
            if self._calls.is_closing or self._num_fetches >= MAX_FETCHES:
                raise CapacityError("the sink takes no more fetches")
            self._num_fetches += 1
            self._calls.add(partial(self._fetches.start_fetch, running))
        return fetch.id

    def _end_fetch(self, on_end: Callable[[FetchEnd], None], end: FetchEnd) -> None:
        with self._lock:
            self._num_fetches -= 1
        on_end(end)

    def _checked_slots(
        self, ticket: Ticket, indices: ArrayLike, block_ids: ArrayLike
    ) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Indices and blocks by ascending index. Raises ValueError."""
        indices_S, slots_S = np.asarray(indices, np.int64), np.asarray(block_ids, np.int64)
        _check(indices_S, "indices", self._means.layout.num_blocks(ticket.num_tokens))
        _check(slots_S, "block_ids", self._means.memory.num_blocks)
        if len(indices_S) > MAX_SLOTS:
            raise ValueError(f"indices: {len(indices_S)} slots in one fetch, at most {MAX_SLOTS}")
        return ascending(indices_S, slots_S)

    def _describe(
        self, ticket: Ticket, heads: range | None, indices_S: NDArray[np.uint32],
        slots_S: NDArray[np.uint32],
    ) -> tuple[Plan | LayoutMismatch, NDArray[Any]]:  # fmt: skip
        """The plan from the ticket's layout to ours, and all pieces; none when there is no plan."""
        try:
            found = plan(ticket.layout, self._means.layout, heads=heads)
        except LayoutMismatch as mismatch:
            return mismatch, np.empty(0, PIECE)
        pieces_S = describe_pieces(
            found, indices_S=indices_S, slots_S=slots_S, num_tokens=ticket.num_tokens
        )
        return found, pieces_S

    def _run(self) -> None:
        try:
            while not self._calls.is_closing:
                ready = self._wait()
                self._calls.clear_wake(ready)
                self._calls.make_all()
                self._fetches.run_turn(ready)
        except Exception as error:
            log.exception("the kv sink stopped")
            self._on_broken(f"the kv sink is broken: {error}")
        finally:
            with self._lock:
                self._calls.refuse_more()
            self._calls.make_all()
            self._fetches.close()
            self._poller.close()

    def _wait(self) -> set[int]:
        """Descriptors that have something; spins a while first, if told to."""
        sleep_s = self._fetches.sleep_s(_IDLE_S)
        if not self._spin_s or not self._num_fetches:
            return self._poller.wait(sleep_s)
        until_s = self._means.clock() + min(sleep_s, self._spin_s)
        while self._means.clock() < until_s:
            for _ in range(_LOOKS):
                if ready := self._poller.spin():
                    return ready
            if ready := self._poller.wait(0.0):
                return ready
        return self._poller.wait(sleep_s)


def _check(values: NDArray[np.int64], name: str, bound: int) -> None:
    if len(values) and not 0 <= values.min() <= values.max() < bound:
        raise ValueError(f"{name}: {values.min()} to {values.max()}, not all from 0 to {bound - 1}")
