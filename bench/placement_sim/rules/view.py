"""What a peer's router knows of the workers of one role: rows by index, from reports."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bench.placement_sim.rule import Member, Report
from bench.placement_sim.rules.directory import Directory


class View:
    """Grows as workers come; whoever has not come is not among them."""

    def __init__(self) -> None:
        self.num_workers = 0
        self.directory = Directory()
        self.waiting: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        """Prompts that wait for their turn, as last reported."""
        self.used: NDArray[np.float64] = np.zeros(0)
        """Part of its blocks that someone holds, as last reported."""
        self.requests: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        """Placed there by this router and not ended."""
        self._rows: dict[int, int] = {}
        self._indexes: list[int] = []

    def add_member(self, member: Member) -> None:
        self._rows[member.index] = self.num_workers
        self._indexes.append(member.index)
        self.num_workers += 1
        self.waiting = np.append(self.waiting, 0)
        self.used = np.append(self.used, 0.0)
        self.requests = np.append(self.requests, 0)

    def row(self, index: int) -> int:
        return self._rows[index]

    def index(self, row: int) -> int:
        return self._indexes[row]

    def note_report(self, report: Report) -> None:
        row = self._rows[report.member.index]
        self.waiting[row] = report.num_waiting_prompts
        num_blocks = report.member.hardware.num_blocks or 1 << 20
        self.used[row] = 1 - report.num_free_blocks / num_blocks

    def note_blocks(
        self, member: Member, kind: Literal["stored", "evicted"], blocks: Sequence[int]
    ) -> None:
        row = self._rows[member.index]
        change = self.directory.store if kind == "stored" else self.directory.evict
        change(row, blocks)

    def depths(self, blocks: Sequence[int]) -> NDArray[np.int64]:
        return self.directory.depths(blocks, num_workers=self.num_workers)
