"""Gloo, as torch brings it: `isend` and `irecv` for each block, over TCP."""

import os
import shutil
import tempfile
import time
from datetime import timedelta
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray

from bench.kvtransfer.case import Case, Move
from bench.kvtransfer.memory import Memory
from bench.kvtransfer.mover import Place

_WITHIN: Final = timedelta(seconds=30)
_SOURCE: Final = 0
_SINK: Final = 1


class _End:
    def __init__(self, place: Place) -> None:
        self._memory = Memory(place.pool_bytes, setting=place.setting)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        mine = tempfile.mkdtemp() if place.side == "source" else ""
        self._folder = mine or place.aside.swap().decode()
        if mine:
            place.aside.swap(mine.encode())
        distributed.init_process_group(
            "gloo", init_method=f"file://{self._folder}/store", world_size=2, timeout=_WITHIN,
            rank=_SOURCE if mine else _SINK,
        )  # fmt: skip
        self._works: list[Any] = []

    def open(self, case: Case) -> NDArray[np.uint64]:
        self._tensors = [
            torch.from_numpy(self._memory.block(block, case.block_bytes))
            for block in range(case.pool_blocks)
        ]
        return self._memory.words[: case.pool_bytes // 8]

    def settle(self, move: Move) -> None:
        self._works = []

    def close(self) -> None:
        distributed.destroy_process_group()
        shutil.rmtree(self._folder, ignore_errors=True)  # both do: whoever comes last finds none

    def _finish(self) -> None:
        for work in self._works:
            work.wait()


class _Source(_End):
    def stage(self, move: Move) -> bytes:
        return b""

    def send(self, move: Move) -> float | None:
        began_s = time.monotonic()
        self._works = [
            distributed.isend(self._tensors[block], _SINK, tag=number)
            for number, block in enumerate(move.source_N)
        ]
        self._finish()
        return began_s


class _Sink(_End):
    def arm(self, move: Move, staged: bytes) -> None:
        self._works = [
            distributed.irecv(self._tensors[block], _SOURCE, tag=number)
            for number, block in enumerate(move.target_N)
        ]

    def receive(self, move: Move) -> tuple[float | None, float]:
        self._finish()
        return None, time.monotonic()


source = _Source
sink = _Sink
