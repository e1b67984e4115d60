"""One run: every contestant in turn, round after round, so that noise hits all alike.

Called by `bench.kvtransfer.__main__`. The order is turned from round to round; nothing runs
beside what is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.kvtransfer import limits, pair
from bench.kvtransfer.case import KIB, MIB, SMALL_BLOCK_BYTES, Case
from bench.kvtransfer.catalogue import Measure, Mover, absent
from bench.kvtransfer.mover import Setting
from bench.kvtransfer.tally import Size, Tally

BLOCK_BYTES: Final = (SMALL_BLOCK_BYTES, 256 * KIB, 2 * MIB)
_PAUSE_S: Final = 0.002
_WITHIN_S: Final = 180.0
"""The longest one pair may take for all its cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured."""

    num_rounds: int
    totals: tuple[tuple[int, int], ...]
    """Bytes in all, and timed iterations of that in a round."""
    num_notices: int
    """Timed iterations of the one small block in a round."""
    settings: tuple[Setting, ...]
    iperf3: str
    """How long or how much iperf3 sends, as its flag says it."""


FULL: Final = Effort(
    num_rounds=3, totals=((64 * MIB, 6), (512 * MIB, 3)), num_notices=200,
    settings=("plain", "tuned"), iperf3="-t2",
)  # fmt: skip
QUICK: Final = Effort(
    num_rounds=1, totals=((64 * MIB, 2),), num_notices=20, settings=("plain",), iperf3="-n256M"
)


def sizes(effort: Effort, measure: Measure) -> list[Size]:
    return [Size.of(measure, case) for case in cases(effort, measure)]


def cases(effort: Effort, measure: Measure) -> list[Case]:
    match measure:
        case "latency":
            return [
                Case(
                    block_bytes=SMALL_BLOCK_BYTES, total_bytes=SMALL_BLOCK_BYTES,
                    num_warm=10, num_timed=effort.num_notices, standing=True, pause_s=_PAUSE_S,
                )
            ]  # fmt: skip
        case "bulk":
            return [
                Case(block_bytes=block, total_bytes=total, num_warm=1, num_timed=timed)
                for total, timed in effort.totals
                for block in BLOCK_BYTES
            ]
        case "publish":
            return [
                Case(
                    block_bytes=block, total_bytes=total, num_warm=1, num_timed=max(1, timed // 2),
                    standing=True, pause_s=_PAUSE_S,
                )
                for total, timed in effort.totals
                for block in BLOCK_BYTES
            ]  # fmt: skip


def measure_all(movers: Sequence[Mover], effort: Effort, *, with_limits: bool) -> Tally:
    tally = Tally(tuple(movers))
    tally.absent |= {mover: why for mover in movers if (why := absent(mover))}
    there = [mover for mover in movers if mover not in tally.absent]
    for number in range(effort.num_rounds):
        if with_limits:
            _measure_limits(tally, effort)
        shift = number * len(there) // effort.num_rounds
        for mover in (*there[shift:], *there[:shift]):
            for setting in effort.settings:
                print(f"round {number + 1}: {mover.name}, {setting}", flush=True)
                _measure(tally, mover, setting, effort)
    return tally


def _measure(tally: Tally, mover: Mover, setting: Setting, effort: Effort) -> None:
    work = [
        (Size.of(measure, case), case)
        for measure in mover.measures
        for case in cases(effort, measure)
    ]
    outcomes = pair.run(mover, setting, [case for _, case in work], within_s=_WITHIN_S)
    for (size, _), outcome in zip(work, outcomes, strict=True):
        tally.add(mover, setting, size, outcome)


def _measure_limits(tally: Tally, effort: Effort) -> None:
    for setting in effort.settings:
        for total, timed in effort.totals:
            tally.copies += limits.memcpy(setting, total_bytes=total, num_timed=timed)
    if limits.has_iperf3():
        tally.iperf += limits.iperf3(effort.iperf3)
