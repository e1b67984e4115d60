"""The limit of the host: contiguous memcpy by one and by two threads between two pools.

    python -m bench.kvtransfer.memcpy plain|tuned TOTAL_BYTES NUM_TIMED

Started by `bench.kvtransfer.limits` once in each setting, with glibc tuned as for everyone; the
pools are measured as memfds, as Baton's are, and as private memory, and the better one counts.
Prints one JSON line.
"""

import ctypes
import os
import sys
import threading
import time
from typing import Literal

import msgspec

from bench.kvtransfer.memory import Memory
from bench.kvtransfer.mover import Setting


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of each iteration."""

    num_threads: int
    pools: Literal["memfd", "private"]
    setting: Setting
    total_bytes: int
    seconds: tuple[float, ...]


def main() -> None:
    job = msgspec.convert(tuple(sys.argv[1:]), tuple[Setting, int, int], strict=False)
    setting, total_bytes, num_timed = job
    found = []
    kinds: tuple[Literal["memfd", "private"], ...] = ("memfd", "private")
    for pools in kinds:
        source, target = (_memory(total_bytes, setting, pools) for _ in range(2))
        source.words[:] = 1
        target.words[:] = 2
        for num_threads in (1, 2):
            each = _copies(source, target, num_threads, num_timed)
            found.append(
                Copied(
                    num_threads=num_threads, pools=pools, setting=setting,
                    total_bytes=total_bytes, seconds=each,
                )
            )  # fmt: skip
        assert (target.words == 1).all()
    print(msgspec.json.encode(found).decode())


def _memory(num_bytes: int, setting: Setting, pools: Literal["memfd", "private"]) -> Memory:
    if pools == "private":
        return Memory(num_bytes, setting=setting)
    fd = os.memfd_create("limit")
    os.ftruncate(fd, num_bytes)
    memory = Memory(num_bytes, setting=setting, fd=fd)
    os.close(fd)
    return memory


def _copies(source: Memory, target: Memory, num_threads: int, num_timed: int) -> tuple[float, ...]:
    """The first copy warms up."""
    return tuple(_copy(source, target, num_threads) for _ in range(1 + num_timed))[1:]


def _copy(source: Memory, target: Memory, num_threads: int) -> float:
    """Seconds of one copy; threads are there before it begins."""
    part = source.num_bytes // num_threads
    start, ends = threading.Barrier(num_threads), [0.0] * num_threads
    begins = [0.0] * num_threads

    def copy(number: int) -> None:
        start.wait(10.0)
        begins[number] = time.monotonic()
        ctypes.memmove(target.address + number * part, source.address + number * part, part)
        ends[number] = time.monotonic()

    threads = [threading.Thread(target=copy, args=(each,)) for each in range(1, num_threads)]
    for thread in threads:
        thread.start()
    copy(0)
    for thread in threads:
        thread.join()
    return max(ends) - min(begins)


if __name__ == "__main__":
    main()
