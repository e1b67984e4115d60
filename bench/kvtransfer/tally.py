"""Everything measured in one run, by contestant, setting and case; and what it comes to.

Filled by `bench.kvtransfer.rounds`, read by rows, table and plot.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.kvtransfer.case import Case
from bench.kvtransfer.catalogue import Measure, Mover
from bench.kvtransfer.limits import Iperf
from bench.kvtransfer.memcpy import Copied
from bench.kvtransfer.mover import Setting
from bench.kvtransfer.side import Outcome, Sample

GB: Final = 1e9
_SPINNING: Final = 0.4
"""A receiver that uses more of a core than this while it waits is one that spins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One column: what was moved and how it was counted."""

    measure: Measure
    block_bytes: int
    total_bytes: int

    @classmethod
    def of(cls, measure: Measure, case: Case) -> "Size":
        return cls(measure=measure, block_bytes=case.block_bytes, total_bytes=case.total_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One contestant in one setting at one size, over all rounds."""

    mover: Mover
    setting: Setting
    size: Size
    seconds: tuple[float, ...]
    cpu_s: float
    """Median of a move, both processes."""
    waiting: float
    """Median part of a core that the receiver used while it waited."""

    @property
    def gb_s(self) -> float:
        return self.size.total_bytes / GB / statistics.median(self.seconds)

    @property
    def best_gb_s(self) -> float:
        return self.size.total_bytes / GB / min(self.seconds)

    @property
    def p50_us(self) -> float:
        return statistics.median(self.seconds) * 1e6

    @property
    def p99_us(self) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] * 1e6

    @property
    def cpu_s_per_gb(self) -> float:
        return self.cpu_s / (self.size.total_bytes / GB)

    @property
    def spins(self) -> bool:
        return self.waiting > _SPINNING

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)


@dataclass(slots=True)
class Tally:
    movers: tuple[Mover, ...]
    """All that were asked for."""
    samples: dict[tuple[Mover, Setting, Size], list[Sample]] = field(
        default_factory=lambda: defaultdict(list)
    )
    failures: dict[tuple[Mover, Setting, Size], str] = field(default_factory=dict)
    remarks: dict[Mover, str] = field(default_factory=dict)
    absent: dict[Mover, str] = field(default_factory=dict)
    copies: list[Copied] = field(default_factory=list)
    iperf: list[Iperf] = field(default_factory=list)

    def add(self, mover: Mover, setting: Setting, size: Size, outcome: Outcome) -> None:
        """A failure in any round takes the figure away."""
        key = (mover, setting, size)
        if outcome.failed:
            self.failures.setdefault(key, outcome.failed)
        if outcome.remark:
            self.remarks[mover] = outcome.remark
        self.samples[key] += outcome.samples

    def figure(self, mover: Mover, setting: Setting, size: Size) -> Figure | None:
        samples = self.samples.get((mover, setting, size))
        if not samples or (mover, setting, size) in self.failures:
            return None
        return Figure(
            mover=mover, setting=setting, size=size,
            seconds=tuple(each.seconds for each in samples),
            cpu_s=statistics.median(each.cpu_s for each in samples),
            waiting=statistics.median(each.waiting for each in samples),
        )  # fmt: skip

    def better(self, mover: Mover, size: Size) -> Figure | None:
        """In the setting that suits it."""
        settings: tuple[Setting, Setting] = ("plain", "tuned")
        found = [self.figure(mover, setting, size) for setting in settings]
        return fastest([each for each in found if each is not None])

    def memcpy_gb_s(self, num_threads: int, total_bytes: int) -> float | None:
        """Median of the kind of pool and setting that is fastest."""
        rates = [
            rate
            for (threads, total, _, _), rate in self.memcpy_rates().items()
            if (threads, total) == (num_threads, total_bytes)
        ]
        return max(rates, default=None)

    def memcpy_rates(self) -> dict[tuple[int, int, str, str], float]:
        """Median GB/s by threads, bytes in all, kind of pools and setting."""
        seconds: dict[tuple[int, int, str, str], list[float]] = defaultdict(list)
        for each in self.copies:
            key = (each.num_threads, each.total_bytes, each.pools, each.setting)
            seconds[key] += each.seconds
        return {key: key[1] / GB / statistics.median(took) for key, took in seconds.items()}

    def iperf_gb_s(self, write: str) -> float | None:
        rates = [each.gb_s for each in self.iperf if each.write == write]
        return statistics.median(rates) if rates else None


def fastest(figures: Sequence[Figure]) -> Figure | None:
    """The one of the lowest median; ties by name."""
    return min(figures, key=lambda each: (each.median_s, each.mover.name), default=None)
