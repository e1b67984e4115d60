"""Where bytes become blocks: says where each chunk goes, and verifies it there.

One a link, on the sink's thread. A piece counts only when its description, its blocks' generations
(where the source's memory can be read) and its checksum are right; every write is begun and ended
in the fetch's state table, so a slot never has two writers.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing, unpack_chunk
from kvtransfer.messages import Chunk, FetchId, Finish
from kvtransfer.plan import NO_BLOCK, Plan
from kvtransfer.sink.events import Rejected
from kvtransfer.sink.fetch import FetchStep
from kvtransfer.sink.means import SinkMeans
from kvtransfer.sink.running_fetch import RunningFetch
from protocol.errors import TransferError
from protocol.ids import WorkerId

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Write:
    """A chunk whose slots have a writer."""

    landing: Landing
    running: RunningFetch
    places_P: NDArray[np.intp]
    began_s: float


class Receiver:
    """Takes the chunks of one link's streams."""

    def __init__(
        self, means: SinkMeans, *, source: WorkerId,
        find: Callable[[FetchId], RunningFetch | None],
        follow: Callable[[RunningFetch, Sequence[FetchStep]], None],
    ) -> None:  # fmt: skip
        """`find` knows the link's running fetches, `follow` carries out what their states say."""
        self._means = means
        self._source = source
        self._find = find
        self._follow = follow
        self._writes: dict[int, _Write] = {}

    def begin_chunk(self, chunk: Chunk) -> Landing | None:
        running = self._find(FetchId(chunk.fetch))
        if running is None or not isinstance(running.plan, Plan):
            return None
        plan = running.plan
        pieces_P, blocks_PB = unpack_chunk(chunk, blocks_per_slot=plan.blocks_per_slot)
        index_P = pieces_P["index"]
        try:
            if plan.blocks_per_slot > 1 or blocks_PB.max() == NO_BLOCK:
                plan.check_pieces(index_P, blocks_PB, num_tokens=running.ticket.num_tokens)
            places_P = running.fetch.begin_write(attempt=chunk.attempt, pieces_P=pieces_P)
        except TransferError as error:
            self._follow(running, running.fetch.fail(error))
            return None
        if places_P is None:
            return None
        source = plan.source(index_P, blocks_PB)
        target = plan.target(index_P, pieces_P["slot"], blocks_PB)
        landing = Landing(chunk, pieces_P, blocks_PB, source, target)
        self._writes[id(landing)] = _Write(landing, running, places_P, self._means.clock())
        return landing

    def end_chunk(
        self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
    ) -> None:
        write = self._writes.pop(id(landing), None)
        if write is None:
            return
        if sums_P is None:
            right_P = np.zeros(len(write.places_P), np.bool_)
        else:
            right_P = sums_P == landing.pieces_P["checksum"]
            broken = broken or "the checksum is another"
        if not right_P.all():
            self._reject(int((~right_P).sum()), broken)
        self._measure(write, right_P)
        steps = write.running.fetch.end_write(write.places_P, right_P=right_P, broken=broken)
        self._settle(write, steps)

    def finished(self, message: Finish) -> None:
        running = self._find(FetchId(message.fetch))
        if running is not None:
            running.written_s = self._means.clock() - message.since_s
            steps = running.fetch.note_arrived(attempt=message.attempt, note=message.note)
            self._follow(running, steps)

    def stop_writes(self, fetch: FetchId | None = None) -> None:
        """Nobody writes any more into the slots of a fetch, or of any."""
        for write in [x for x in self._writes.values() if fetch in (None, x.landing.fetch)]:
            if self._writes.pop(id(write.landing), None) is not None:  # an end stops all the rest
                self._settle(write, write.running.fetch.stop_write(write.places_P))

    def _settle(self, write: _Write, steps: Sequence[FetchStep]) -> None:
        """Tell whoever waits for the slots: the fetch, or, after its end, their owner."""
        if write.running.fetch.ended and not steps:
            self._means.return_slots(write.landing.pieces_P["slot"].tolist())
        else:
            self._follow(write.running, steps)

    def _reject(self, num_pieces: int, why: str) -> None:
        remedy = "none, it is asked for again; if it comes often test both hosts' memory"
        told = {"source": self._source, "blocks": num_pieces, "why": why, "remedy": remedy}
        log.warning("block rejected", extra=told)
        self._means.report_event(Rejected(num_blocks=num_pieces, why=why))

    def _measure(self, write: _Write, right_P: NDArray[np.bool_]) -> None:
        running, now_s = write.running, self._means.clock()
        running.flow_s += now_s - write.began_s
        num_bytes = int(write.landing.pieces_P["num_bytes"][right_P].sum())
        if num_bytes and not running.num_bytes:
            running.first_s = now_s
            told = {"lease": running.fetch.lease_id, "lent": running.prefix is not None}
            log.info("first block", extra={**told, "source": self._source})
        running.num_bytes += num_bytes
