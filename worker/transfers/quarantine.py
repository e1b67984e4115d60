"""Blocks of ended fetches that somebody may still write into: nobody gets them before it stops."""

from collections.abc import Callable, Iterable, Sequence

from engine.loop import Engine
from protocol.process.metrics import TransferMetrics


class Quarantine:
    """Changed on the sink's thread; `num_blocks` may be read from any other."""

    def __init__(self, engine: Engine, metrics: TransferMetrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self._blocks: set[int] = set()
        self._when_quiet: dict[int, Callable[[], None]] = {}

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    def hold(self, block_ids: Iterable[int]) -> None:
        self._blocks.update(block_ids)
        self._metrics.quarantined_blocks.set(len(self._blocks))

    def hold_until_quiet(self, block: int, then: Callable[[], None]) -> None:
        """One that no sequence owns; `then` gives it back."""
        self._when_quiet[block] = then
        self.hold((block,))

    def quiet(self, block_ids: Sequence[int]) -> None:
        """Nobody writes into these any more: the engine may use them again."""
        self._engine.quiet(tuple(block_ids))
        for block in block_ids:
            if (then := self._when_quiet.pop(block, None)) is not None:
                then()
        self._blocks.difference_update(block_ids)
        self._metrics.quarantined_blocks.set(len(self._blocks))
