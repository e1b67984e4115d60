"""Copies with their sums, by every kind of processor that this one is, beside plain memcpy.

    python -m bench.kvtransfer.copies [--rounds N] [--kib N]

One thread, between two pools as memfds, scattered: in each round all ways are measured one after
another, memcpy of the whole before each. The ratio to that memcpy is printed, the median of all
rounds; on a machine with other work look at the thread's CPU seconds. What it costs the next reader
that bytes were stored past the cache is not measured.
"""

import argparse
import ctypes
import itertools
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.native.library import KERNELS, SUM_NUMBERS, declared
from kvtransfer.sum_kinds import SUM_KINDS, SumKind
from protocol.process.kernels.c_kernels import compiler
from protocol.process.kernels.targets import targets_here

_PIECES_BYTES: Final = (32 << 10, 256 << 10, 2 << 20)
_NEVER: Final = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    target: str
    kind: SumKind
    piece_bytes: int
    stores: str
    """"streamed", "cached", or "none": only summed."""


class Pools:
    """Two of them, and the scattered ranges that are copied."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.source, self.target = _pool(num_bytes), _pool(num_bytes)
        self.source[:] = np.random.default_rng(1).integers(0, 256, num_bytes, np.uint8)

    def memcpy(self) -> None:
        ctypes.memmove(self.target.ctypes.data, self.source.ctypes.data, self.num_bytes)

    def copy(self, library: ctypes.CDLL, way: Way) -> Callable[[], None]:
        num = self.num_bytes // way.piece_bytes
        from_R = np.random.default_rng(2).permutation(num) * way.piece_bytes
        into_R = np.arange(num) * way.piece_bytes
        sizes_R, starts_P = np.full(num, way.piece_bytes), np.arange(num + 1)
        sums_P = np.zeros(num, np.uint64)

        def act() -> None:
            library.baton_kv_stream_from(0 if way.stores == "streamed" else _NEVER)
            answer = library.baton_kv_copy(
                self.target.ctypes.data, self.num_bytes,
                None if way.stores == "none" else into_R.ctypes.data, self.source.ctypes.data,
                self.num_bytes, from_R.ctypes.data, sizes_R.ctypes.data, num, starts_P.ctypes.data,
                num, SUM_NUMBERS[way.kind], sums_P.ctypes.data,
            )  # fmt: skip
            assert not answer

        return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kib", type=int, default=64 << 10, help="in each pool")
    chosen = parser.parse_args()
    pools = Pools(chosen.kib << 10)
    with tempfile.TemporaryDirectory() as folder:
        acts = _acts(pools, Path(folder))
    ratios: dict[Way, list[tuple[float, float]]] = {way: [] for way in acts}
    plain: list[tuple[float, float]] = []
    for way in [way for _ in range(chosen.rounds) for way in acts]:
        pools.memcpy()  # what was streamed comes back into the cache
        wall_s, cpu_s = _timed(pools.memcpy)
        own = _timed(acts[way])
        plain.append((wall_s, cpu_s))
        ratios[way].append((wall_s / own[0], cpu_s / own[1]))
    _print(pools, plain, ratios)


def _acts(pools: Pools, folder: Path) -> dict[Way, Callable[[], None]]:
    found = compiler()
    assert found is not None, "no C compiler"
    acts = {}
    for target in targets_here():
        built = KERNELS.prebuild(target, folder, compiler=found)
        library = declared(ctypes.CDLL(str(built)))
        for kind, piece_bytes, stores in itertools.product(
            SUM_KINDS, _PIECES_BYTES, ("streamed", "cached", "none")
        ):
            way = Way(target=target.name, kind=kind, piece_bytes=piece_bytes, stores=stores)
            if piece_bytes <= pools.num_bytes:
                acts[way] = pools.copy(library, way)
    return acts


def _print(
    pools: Pools, plain: list[tuple[float, float]], ratios: dict[Way, list[tuple[float, float]]]
) -> None:
    wall_s, cpu_s = (statistics.median(each) for each in zip(*plain, strict=True))
    num_gb = pools.num_bytes / 1e9
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"memcpy: {num_gb / wall_s:.1f} GB/s, {cpu_s / num_gb:.3f} CPU s/GB; load {load}")
    print("speed as part of memcpy's: by the clock, by the thread's CPU seconds")
    for way, each in ratios.items():
        by_clock, by_cpu = (statistics.median(one) for one in zip(*each, strict=True))
        size = f"{way.piece_bytes >> 10} KiB"
        print(
            f"{way.target:15} {way.kind:15} {size:>9} {way.stores:9} {by_clock:6.2f} {by_cpu:6.2f}"
        )


def _pool(num_bytes: int) -> NDArray[np.uint8]:
    fd = os.memfd_create("copies")
    os.ftruncate(fd, num_bytes)
    mapped = np.frombuffer(mmap.mmap(fd, num_bytes), np.uint8)
    os.close(fd)
    mapped[:] = 1
    return mapped


def _timed(act: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of this thread's CPU."""
    wall_s, cpu_s = time.perf_counter(), time.thread_time()
    act()
    return time.perf_counter() - wall_s, time.thread_time() - cpu_s


if __name__ == "__main__":
    main()
