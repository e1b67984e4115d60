"""Where bytes become blocks: says where each chunk goes, and verifies it there.

One a link, on the sink's thread. A piece counts only when its description, its blocks' generations
(where the source's memory can be read) and its checksum are right; every write is begun and ended
in the fetch's state table, so a slot never has two writers.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import NO_BLOCK, Landing, unpack
from kvtransfer.memory.host_pool import Pool
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.plan import Plan
from kvtransfer.sink.fetch import Fetch, FetchStep
from protocol.errors import TransferError
from protocol.messages import Ticket

log = logging.getLogger(__name__)


class Receiving(Protocol):
    """A running fetch, as far as its bytes are concerned."""

    fetch: Fetch
    ticket: Ticket
    num_bytes: int
    """Verified so far."""
    first_s: float
    """When the first of them were, on our clock."""
    flow_s: float
    """Seconds in which bytes of it flowed."""

    @property
    def plan(self) -> Plan | None:
        """From the source's layout to ours; None when there is no way."""


class Fetches(Protocol):
    """Who knows the running fetches of one link."""

    def find(self, fetch: FetchId) -> Receiving | None: ...

    def follow(self, active: Receiving, steps: Sequence[FetchStep]) -> None:
        """Carry out what a fetch's table answers."""

    def finished(self, active: Receiving, word: Finish) -> None: ...

    def quiet(self, block_ids: Sequence[int]) -> None:
        """Nobody writes into these quarantined slots any more."""

    def rejected(self, num_pieces: int, why: str) -> None:
        """So many arrived and are not used."""


@dataclass(slots=True, eq=False)
class _Open:
    """A chunk whose slots have a writer."""

    landing: Landing
    active: Receiving
    places_P: NDArray[np.intp]
    began_s: float


class Receiver:
    """The taker of one link's chunks."""

    def __init__(self, memory: Pool, fetches: Fetches, *, clock: Callable[[], float]) -> None:
        self._memory = memory
        self._fetches = fetches
        self._clock = clock
        self._open: dict[int, _Open] = {}

    def successor(self) -> "Receiver":
        """Another, for the link's next stream, while writers of this one's go on."""
        return Receiver(self._memory, self._fetches, clock=self._clock)

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        active = self._fetches.find(FetchId(chunk.fetch))
        if active is None or active.plan is None:
            return None
        plan = active.plan
        pieces_P, blocks_PB = unpack(chunk, blocks_per_slot=plan.blocks_per_slot)
        index_P = pieces_P["index"]
        try:
            if plan.blocks_per_slot > 1 or blocks_PB.max() == NO_BLOCK:
                plan.check(index_P, blocks_PB, num_tokens=active.ticket.num_tokens)
            places_P = active.fetch.begin_write(attempt=chunk.attempt, pieces_P=pieces_P)
        except TransferError as error:
            self._fetches.follow(active, active.fetch.fail(error))
            return None
        if places_P is None:
            return None
        source = plan.source(index_P, blocks_PB)
        target = plan.target(index_P, pieces_P["slot"], blocks_PB)
        landing = Landing(chunk, pieces_P, blocks_PB, source, target)
        self._open[id(landing)] = _Open(landing, active, places_P, self._clock())
        return landing

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        opened = self._open.pop(id(landing), None)
        if opened is None:
            return
        active = opened.active
        if sums_P is None:
            right_P = np.zeros(len(opened.places_P), np.bool_)
        else:
            right_P = sums_P == landing.pieces_P["checksum"]
            broken = broken or "the checksum is another"
        if not right_P.all():
            self._fetches.rejected(int((~right_P).sum()), broken)
        active.flow_s += self._clock() - opened.began_s
        num_bytes = _bytes_of(landing, right_P)
        if num_bytes and not active.num_bytes:
            active.first_s = self._clock()
            log.info("first block", extra={"lease": active.fetch.lease})
        active.num_bytes += num_bytes
        steps = active.fetch.end_write(opened.places_P, right_P=right_P, broken=broken)
        self._settle(opened, steps)

    def finished(self, word: Finish) -> None:
        active = self._fetches.find(FetchId(word.fetch))
        if active is not None:
            self._fetches.finished(active, word)

    def stopped(self, fetch: FetchId | None = None) -> None:
        """Nobody writes any more into the slots of a fetch, or of any."""
        for opened in [x for x in self._open.values() if fetch in (None, x.landing.fetch)]:
            if self._open.pop(id(opened.landing), None) is not None:  # an end stops all the rest
                self._settle(opened, opened.active.fetch.stop_write(opened.places_P))

    def _settle(self, opened: _Open, steps: Sequence[FetchStep]) -> None:
        """Tell whoever waits for the slots: the fetch, or, after its end, their owner."""
        if opened.active.fetch.ended and not steps:
            self._fetches.quiet(opened.landing.pieces_P["slot"].tolist())
        else:
            self._fetches.follow(opened.active, steps)


def _bytes_of(landing: Landing, right_P: NDArray[np.bool_]) -> int:
    return int(landing.pieces_P["num_bytes"][right_P].sum())
