"""The limit of a notification: a byte on a unix socket, or a word both ends see, then memcpy.

No lease, no check, no request: nobody can be faster than this in Python. Options: "socket" (the
receiver sleeps) or "flag" (it spins).
"""

import os
import time

import numpy as np
from numpy.typing import NDArray

from bench.kvtransfer.case import Case, Move
from bench.kvtransfer.memory import Memory
from bench.kvtransfer.mover import Place
from bench.kvtransfer.polling import poll


class _Source:
    """Its pool is a memfd that the sink maps; the word behind the last block is the flag."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._flags = place.option == "flag"
        fd = os.memfd_create("bare")
        os.ftruncate(fd, place.pool_bytes + _page_bytes())
        self._memory = Memory(place.pool_bytes + _page_bytes(), setting=place.setting, fd=fd)
        place.aside.tell_descriptor(fd)
        os.close(fd)

    def open(self, case: Case) -> NDArray[np.uint64]:
        return self._memory.words[: case.pool_bytes // 8]

    def stage(self, move: Move) -> bytes:
        return b""

    def send(self, move: Move) -> float | None:
        began_s = time.monotonic()
        if self._flags:
            self._memory.words[self._place.pool_bytes // 8] = move.number + 1
        else:
            self._place.aside.tell()
        return began_s

    def settle(self, move: Move) -> None:
        pass

    def close(self) -> None:
        pass


class _Sink:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._flags = place.option == "flag"
        fd = place.aside.hear_descriptor()
        self._theirs = Memory(place.pool_bytes + _page_bytes(), setting=place.setting, fd=fd)
        os.close(fd)
        self._memory = Memory(place.pool_bytes, setting=place.setting)

    def open(self, case: Case) -> NDArray[np.uint64]:
        return self._memory.words[: case.pool_bytes // 8]

    def arm(self, move: Move, staged: bytes) -> None:
        pass

    def receive(self, move: Move) -> tuple[float | None, float]:
        if self._flags:
            flag = self._theirs.words[self._place.pool_bytes // 8 :]
            poll(lambda: flag[0] == move.number + 1)
        else:
            self._place.aside.hear()
        size = move.case.block_bytes
        for source, target in zip(move.source_N, move.target_N, strict=True):
            np.copyto(self._memory.block(target, size), self._theirs.block(source, size))
        return None, time.monotonic()

    def settle(self, move: Move) -> None:
        pass

    def close(self) -> None:
        pass


def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")


source = _Source
sink = _Sink
