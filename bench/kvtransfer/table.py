"""The run as text: every contestant at every size, in the setting that suits it."""

from collections.abc import Sequence
from typing import Final

from bench.kvtransfer.case import KIB, MIB
from bench.kvtransfer.catalogue import Measure, Mover
from bench.kvtransfer.limits import IPERF3_ABSENT
from bench.kvtransfer.rounds import Effort, sizes
from bench.kvtransfer.tally import Size, Tally

_NAME: Final = 50
_CELL: Final = 19


def table(tally: Tally, effort: Effort) -> str:
    bulk = sizes(effort, "bulk")
    parts = [
        "GB/s median/best, CPU s/GB of both processes (t: tuned was better)",
        _line("", [_head(size) for size in bulk]),
        *_limits(tally, bulk),
        *_rows(tally, effort, "bulk"),
        "",
        "from before publish, checksums included",
        *_rows(tally, effort, "publish"),
        "",
        "one 32 KiB block with notification: p50/p99 µs, core used while waiting",
        *_rows(tally, effort, "latency"),
        *_remarks(tally),
    ]
    return "\n".join(parts)


def _rows(tally: Tally, effort: Effort, measure: Measure) -> list[str]:
    return [
        _row(tally, mover, sizes(effort, measure))
        for mover in tally.movers
        if measure in mover.measures
    ]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:{_NAME}s}" + "".join(f"{cell:>{_CELL}s}" for cell in cells)


def _head(size: Size) -> str:
    block = size.block_bytes // KIB
    return f"{block} KiB/{size.total_bytes // MIB} MiB"


def _row(tally: Tally, mover: Mover, columns: Sequence[Size]) -> str:
    if why := tally.absent.get(mover):
        return f"{mover.name:{_NAME}s}  {why}"
    return _line(mover.name, [_cell(tally, mover, size) for size in columns])


def _cell(tally: Tally, mover: Mover, size: Size) -> str:
    figure = tally.better(mover, size)
    if figure is None:
        return "-"
    mark = "t" if figure.setting == "tuned" else ""
    if size.measure == "latency":
        return f"{figure.p50_us:.0f}/{figure.p99_us:.0f} {figure.waiting:.2f}{mark}"
    return f"{figure.gb_s:.1f}/{figure.best_gb_s:.1f}, {figure.cpu_s_per_gb:.2f}{mark}"


def _limits(tally: Tally, columns: Sequence[Size]) -> list[str]:
    lines = []
    for threads in (1, 2):
        rates = [tally.memcpy_gb_s(threads, size.total_bytes) for size in columns]
        cells = ["-" if rate is None else f"{rate:.1f}" for rate in rates]
        lines.append(_line(f"limit: memcpy, contiguous, threads: {threads}", cells))
    for write in ("1M", "default"):
        stream = tally.iperf_gb_s(write)
        said = IPERF3_ABSENT if stream is None else f"{stream:.1f}"
        lines.append(f"{f'limit: iperf3, one stream, writes: {write}':{_NAME}s}  {said}")
    return lines


def _remarks(tally: Tally) -> list[str]:
    lines = [
        f"failed: {mover.name}, {setting}, {size.measure} {_head(size)}: {why}"
        for (mover, setting, size), why in tally.failures.items()
    ]
    lines += [f"remark: {mover.name}: {why}" for mover, why in tally.remarks.items()]
    return ["", *lines] if lines else []
