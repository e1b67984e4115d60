"""Baton's KV transfer beside NIXL, Mooncake, UCX, gloo and ZeroMQ, in one run.

    make bench-kvtransfer
    python -m bench.kvtransfer [--quick] [--rounds 3] [--only FAMILY ...] [--results DIR]

Scattered blocks go from one process's pool to other block ids of another's. Prints a table and
whether the run meets each bar; appends one JSON line a row to `kvtransfer.jsonl` and draws
`kvtransfer.png` under the results directory. How each contestant is timed is said in its file.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, get_args

import msgspec

from bench.kvtransfer.bars import verdicts
from bench.kvtransfer.case import MIB
from bench.kvtransfer.catalogue import LIMITS, OURS, PEERS, Family
from bench.kvtransfer.limits import IPERF3_ABSENT, has_iperf3
from bench.kvtransfer.plot import plot
from bench.kvtransfer.rounds import FULL, QUICK, Effort, measure_all
from bench.kvtransfer.row import Row, rows
from bench.kvtransfer.table import table
from bench.kvtransfer.tally import Tally
from bench.record import RESULTS, machine

_PACKAGES: Final = (
    *("nixl", "mooncake-transfer-engine-non-cuda", "ucxx-cu12", "libucx-cu12"),
    *("pyzmq", "torch", "numpy"),
)
_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")
TIMED: Final = (
    "ours, bulk: from Sink.fetch to on_end(Landed), the blocks published before, so that their "
    "checksums were taken as during a prefill; CPU counts the publishing too; from publish: "
    "from before Source.finish, which publishes all, with the fetch waiting; latency: the same of "
    "one block, to on_end in the other process. Peers: from the first call of whoever "
    "begins to when the receiver knows that all is there; registration, descriptor lists and "
    "posted receives before. Each in the better of two settings, everyone's bytes verified."
)


def main() -> None:
    options = _options()
    families = set(options.only or get_args(Family))
    effort: Effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, num_rounds=options.rounds)
    if not has_iperf3():
        print(IPERF3_ABSENT)
    movers = [mover for mover in (*OURS, *LIMITS, *PEERS) if mover.family in families]
    load = os.getloadavg()[0]
    tally = measure_all(movers, effort, with_limits="limit" in families)
    run = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
    found = rows(tally, effort, run=run)
    print(table(tally, effort))
    print(f"\n{TIMED}\n")
    for verdict in verdicts(found):
        print(verdict)
    _keep(options.results, found, _conditions(tally, effort, load_before=load))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 MiB, one round, one setting")
    parser.add_argument("--rounds", type=int, default=0, help="6 to 12 minutes each; 3 unless told")
    parser.add_argument("--only", action="append", choices=get_args(Family))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def _keep(folder: Path, found: Sequence[Row], conditions: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "kvtransfer.jsonl").open("a") as file:
        for row in found:
            line = msgspec.to_builtins(row) | {"conditions": conditions}
            file.write(json.dumps(line) + "\n")
    if not plot(found, folder / "kvtransfer.png"):
        print("no plot: no matplotlib in this environment")


def _conditions(tally: Tally, effort: Effort, *, load_before: float) -> dict[str, object]:
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "load_1min_before": round(load_before, 2),
        "huge_pages": {name: _chosen(name) for name in ("enabled", "shmem_enabled")},
        "versions": {name: _version(name) for name in _PACKAGES},
        "rounds": effort.num_rounds,
        "iterations": [list(each) for each in effort.totals],
        "memcpy_gb_s": {
            f"{threads} threads, {total // MIB} MiB, {pools}, {setting}": round(rate, 2)
            for (threads, total, pools, setting), rate in tally.memcpy_rates().items()
        },
        "iperf3_gb_s": {write: tally.iperf_gb_s(write) for write in ("1M", "default")},
        "absent": {mover.name: why for mover, why in tally.absent.items()},
        "failed": [
            f"{mover.name}, {setting}, {size.measure}, {size.block_bytes} of {size.total_bytes}: "
            f"{why}"
            for (mover, setting, size), why in tally.failures.items()
        ],
        "remarks": {mover.name: why for mover, why in tally.remarks.items()},
        "timed": TIMED,
    }


def _chosen(name: str) -> str:
    """The word in brackets of one of the kernel's settings."""
    try:
        text = (_HUGE_PAGES / name).read_text()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    main()
