"""What the results must reach, and whether a run does: ratios within one run.

Called by `bench.kvtransfer.__main__`. A bar without a figure is not met.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bench.kvtransfer.case import KIB, MIB
from bench.kvtransfer.row import Mode, Row

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "at least": operator.ge,
    "at most": operator.le,
}
Key = Literal["ratio_to_best_peer", "ratio_to_limit", "cpu_s_per_gb"]


@dataclass(frozen=True, slots=True)
class Bar:
    mode: Mode
    total_bytes: int
    """0: whatever was moved."""
    key: Key
    compare: Literal["at least", "at most"]
    target: float


BARS: Final = (
    Bar("both copy", 64 * MIB, "ratio_to_best_peer", "at least", 2.0),
    Bar("both copy", 512 * MIB, "ratio_to_best_peer", "at least", 2.5),
    Bar("both copy", 0, "cpu_s_per_gb", "at most", 0.15),
    Bar("one copies", 0, "ratio_to_best_peer", "at least", 1.4),
    Bar("one copies", 0, "cpu_s_per_gb", "at most", 0.15),
    Bar("sleeping", 0, "ratio_to_best_peer", "at most", 0.6),
    Bar("spinning", 0, "ratio_to_best_peer", "at most", 0.5),
    Bar("tcp", 0, "ratio_to_best_peer", "at least", 1.2),
    Bar("tcp", 0, "ratio_to_limit", "at least", 0.8),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    bar: Bar
    row: Row
    value: float | None

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return _COMPARE[self.bar.compare](self.value, self.bar.target)

    def __str__(self) -> str:
        size = f"{self.row.block_bytes // KIB} KiB"
        if self.row.case != "latency":
            size += f" of {self.row.total_bytes // MIB} MiB"
        value = "no figure" if self.value is None else f"{self.value:.2f}"
        words = {
            "ratio_to_best_peer": f"times the best peer ({self.row.best_peer_name or 'none'})",
            "ratio_to_limit": f"times the limit ({self.row.limit_name})",
            "cpu_s_per_gb": "CPU s/GB",
        }[self.bar.key]
        verdict = "met   " if self.met else "MISSED"
        return (
            f"{verdict} {self.bar.mode:10s} {size:18s} {value:>9s} {words}, "
            f"{self.bar.compare} {self.bar.target}"
        )


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    return [
        Verdict(bar, row, getattr(row, bar.key))
        for bar in BARS
        for row in rows
        if row.mode == bar.mode and bar.total_bytes in (0, row.total_bytes)
    ]
