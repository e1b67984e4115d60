"""UCX through `ucxx`: a tagged send and receive for each block; its Python has no remote reads.

Options: "poll" or "block" for how an end waits for its worker.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import ucxx._lib.libucxx as api
from numpy.typing import NDArray
from ucxx._lib.arr import Array

from bench.kvtransfer.case import Case, Move
from bench.kvtransfer.memory import Memory
from bench.kvtransfer.mover import Place
from bench.kvtransfer.polling import poll

_STEP_MS: Final = 1_000


class _End:
    def __init__(self, place: Place) -> None:
        self._blocks_wait = place.option == "block"
        self._memory = Memory(place.pool_bytes, setting=place.setting)
        context = api.UCXContext(feature_flags=(api.Feature.TAG, api.Feature.WAKEUP))
        self._worker: Any = api.UCXWorker(context)
        if self._blocks_wait:
            self._worker.init_blocking_progress_mode()
        address = bytes(memoryview(self._worker.address))
        other = api.UCXAddress.create_from_buffer(bytearray(place.aside.swap(address)))
        self._endpoint: Any = api.UCXEndpoint.create_from_worker_address(
            self._worker, other, endpoint_error_handling=False
        )
        self._requests: list[Any] = []

    def open(self, case: Case) -> NDArray[np.uint64]:
        self._arrays = [
            Array(self._memory.block(block, case.block_bytes)) for block in range(case.pool_blocks)
        ]
        return self._memory.words[: case.pool_bytes // 8]

    def settle(self, move: Move) -> None:
        for request in self._requests:
            request.check_error()
        self._requests = []

    def close(self) -> None:
        self._endpoint.close_blocking()

    def _finish(self, requests: Sequence[Any]) -> None:
        left = list(reversed(requests))

        def done() -> bool:
            if self._blocks_wait:
                self._worker.progress_worker_event(_STEP_MS)
            else:
                self._worker.progress()
            while left and left[-1].completed:
                left.pop()
            return not left

        poll(done)


class _Source(_End):
    def stage(self, move: Move) -> bytes:
        return b""

    def send(self, move: Move) -> float | None:
        began_s = time.monotonic()
        self._requests = [
            self._endpoint.tag_send(self._arrays[block], tag=api.UCXXTag(number))
            for number, block in enumerate(move.source_N)
        ]
        self._finish(self._requests)
        return began_s


class _Sink(_End):
    def arm(self, move: Move, staged: bytes) -> None:
        self._requests = [
            self._endpoint.tag_recv(self._arrays[block], tag=api.UCXXTag(number))
            for number, block in enumerate(move.target_N)
        ]

    def receive(self, move: Move) -> tuple[float | None, float]:
        self._finish(self._requests)
        return None, time.monotonic()


source = _Source
sink = _Sink
