"""Which worker holds which sealed blocks: a local replica, answered without an await.

Pure: time is a value passed in. A hint, never a promise: a worker matches its own cache again.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.blocks import ChangeKind
from protocol.ids import BlockHash, Epoch, WorkerId

SPECULATIVE_TTL_S = 2.0
"""A dispatched prompt counts as cached this long before the worker's own events say so."""


class IndexState(StrEnum):
    """How far the replica can be believed, of one worker or of all."""

    EXACT = "exact"
    DEGRADED = "degraded"
    """Something was missed; a snapshot is wanted."""
    OFF = "off"
    """Nothing was ever learned."""


@dataclass(slots=True)
class _Holding:
    epoch: Epoch
    bit: int
    state: IndexState = IndexState.OFF
    sequence: int = 0
    hashes: set[BlockHash] = field(default_factory=set)


class PrefixIndex:
    """Hash -> bitmask of workers, and per worker what it takes to keep that true.

    Each incarnation numbers its events without a gap; a snapshot carries the number of the last
    event it contains, and is what a worker becomes exact by. Events of an epoch not followed are
    ignored.
    """

    def __init__(self) -> None:
        self._holders: dict[BlockHash, int] = {}
        self._workers: dict[WorkerId, _Holding] = {}
        self._free_bits: list[int] = []
        self._hoped: dict[BlockHash, dict[WorkerId, float]] = {}
        self._hopes: deque[tuple[float, WorkerId, Sequence[BlockHash]]] = deque()

    def follow_only_workers(self, workers: Mapping[WorkerId, Epoch]) -> None:
        """Follow these incarnations; what any other held is forgotten."""
        for worker in self._workers.keys() - workers.keys():
            self.forget_worker(worker)
        for worker, epoch in workers.items():
            self.follow_worker(worker, epoch)

    def follow_worker(self, worker: WorkerId, epoch: Epoch) -> None:
        """Begin with this incarnation; what an earlier one held is forgotten."""
        current = self._workers.get(worker)
        if current is not None and current.epoch == epoch:
            return
        self.forget_worker(worker)
        bit = self._free_bits.pop() if self._free_bits else 1 << len(self._workers)
        self._workers[worker] = _Holding(epoch, bit)

    def forget_worker(self, worker: WorkerId) -> None:
        holding = self._workers.get(worker)
        if holding is None:
            return
        self._clear(holding)
        del self._workers[worker]
        self._free_bits.append(holding.bit)
        for holders in self._hoped.values():
            holders.pop(worker, None)

    def apply_event(
        self,
        worker: WorkerId,
        epoch: Epoch,
        *,
        sequence: int,
        kind: ChangeKind,
        hashes: Iterable[BlockHash] = (),
    ) -> IndexState | None:
        """One event; returns the worker's state after it, None if it is not followed."""
        holding = self._workers.get(worker)
        if holding is None or holding.epoch != epoch:
            return None
        if sequence <= holding.sequence:
            return holding.state
        if sequence != holding.sequence + 1 and holding.state is IndexState.EXACT:
            holding.state = IndexState.DEGRADED
        holding.sequence = sequence
        self._change(holding, kind, hashes)
        return holding.state

    def load_snapshot(
        self, worker: WorkerId, epoch: Epoch, *, sequence: int, hashes: Iterable[BlockHash]
    ) -> bool:
        """Replace what is known of this incarnation; False if the snapshot is no use: of
        another epoch, or older than events already applied."""
        holding = self._workers.get(worker)
        if holding is None or holding.epoch != epoch or sequence < holding.sequence:
            return False
        self._clear(holding)
        self._store(holding, hashes)
        holding.sequence = sequence
        holding.state = IndexState.EXACT
        return True

    def doubt_all(self) -> None:
        """The feed was cut: events may have been missed, so every worker wants a snapshot."""
        for holding in self._workers.values():
            if holding.state is IndexState.EXACT:
                holding.state = IndexState.DEGRADED

    def doubted(self) -> list[tuple[WorkerId, Epoch]]:
        """Incarnations that want a snapshot, by name."""
        return sorted(
            (worker, holding.epoch)
            for worker, holding in self._workers.items()
            if holding.state is not IndexState.EXACT
        )

    def expect_blocks(self, worker: WorkerId, hashes: Sequence[BlockHash], *, now: float) -> None:
        """A prompt was just sent there: believe it cached for `SPECULATIVE_TTL_S`."""
        expires = now + SPECULATIVE_TTL_S
        for block in hashes:
            self._hoped.setdefault(block, {})[worker] = expires
        self._hopes.append((expires, worker, hashes))

    def depths(self, hashes: Sequence[BlockHash], *, now: float) -> dict[WorkerId, int]:
        """How many leading blocks of the chain each followed worker holds."""
        self._drop_stale(now)
        depths = dict.fromkeys(self._workers, 0)
        matching = {worker: holding.bit for worker, holding in self._workers.items()}
        for depth, block in enumerate(hashes):
            mask = self._holders.get(block, 0)
            hoped = self._hoped.get(block, {})
            for worker in [w for w, bit in matching.items() if not mask & bit and w not in hoped]:
                depths[worker] = depth
                del matching[worker]
            if not matching:
                return depths
        depths.update(dict.fromkeys(matching, len(hashes)))
        return depths

    @property
    def state(self) -> IndexState:
        """Of the whole: exact if every worker is, off if none was ever learned."""
        states = {holding.state for holding in self._workers.values()}
        if not states or states == {IndexState.EXACT}:
            return IndexState.EXACT
        return IndexState.OFF if states == {IndexState.OFF} else IndexState.DEGRADED

    @property
    def states(self) -> dict[WorkerId, IndexState]:
        return {worker: holding.state for worker, holding in self._workers.items()}

    def __len__(self) -> int:
        """Different blocks held by anyone."""
        return len(self._holders)

    def _change(self, holding: _Holding, kind: ChangeKind, hashes: Iterable[BlockHash]) -> None:
        match kind:
            case "stored":
                self._store(holding, hashes)
            case "evicted":
                self._evict(holding, hashes)
            case "cleared":
                self._clear(holding)

    def _store(self, holding: _Holding, hashes: Iterable[BlockHash]) -> None:
        for block in hashes:
            holding.hashes.add(block)
            self._holders[block] = self._holders.get(block, 0) | holding.bit

    def _evict(self, holding: _Holding, hashes: Iterable[BlockHash]) -> None:
        for block in hashes:
            if block not in holding.hashes:
                continue
            holding.hashes.remove(block)
            mask = self._holders[block] & ~holding.bit
            if mask:
                self._holders[block] = mask
            else:
                del self._holders[block]

    def _clear(self, holding: _Holding) -> None:
        self._evict(holding, list(holding.hashes))

    def _drop_stale(self, now: float) -> None:
        while self._hopes and self._hopes[0][0] <= now:
            _, worker, hashes = self._hopes.popleft()
            for block in hashes:
                holders = self._hoped.get(block)
                if holders is None:
                    continue
                if holders.get(worker, now + 1.0) <= now:
                    del holders[worker]
                if not holders:
                    del self._hoped[block]
