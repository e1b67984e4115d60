"""Mooncake's transfer engine over TCP: synchronous batches of 2,048 blocks, as one of
4,096 blocks of 32 KiB returned -1.

Options: "write" (the source writes) or "read" (the sink reads). The library tells the other end
nothing by itself that it could sleep for: a byte on a unix socket does.
"""

import time
from typing import Any, Final

import msgspec
import numpy as np
from mooncake.engine import TransferEngine
from numpy.typing import NDArray

from bench.kvtransfer.case import Case, Move
from bench.kvtransfer.memory import Memory
from bench.kvtransfer.mover import Place

_BATCH: Final = 2_048


class _Card(msgspec.Struct, frozen=True):
    """What one end tells the other of itself."""

    port: int
    address: int


class _End:
    def __init__(self, place: Place) -> None:
        self._aside = place.aside
        self._reads = place.option == "read"
        self._memory = Memory(place.pool_bytes, setting=place.setting)
        self._engine: Any = TransferEngine()
        _check(self._engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", ""), "initialize")
        registered = self._engine.register_memory(self._memory.address, place.pool_bytes)
        _check(registered, "register_memory")
        card = _Card(self._engine.get_rpc_port(), self._memory.address)
        told = place.aside.swap(msgspec.msgpack.encode(card))
        self._other = msgspec.msgpack.decode(told, type=_Card)

    def open(self, case: Case) -> NDArray[np.uint64]:
        return self._memory.words[: case.pool_bytes // 8]

    def settle(self, move: Move) -> None:
        pass

    def close(self) -> None:
        self._engine.unregister_memory(self._memory.address)

    def _move(self, case: Case, here_N: NDArray[np.int64], there_N: NDArray[np.int64]) -> None:
        there = f"127.0.0.1:{self._other.port}"
        engine = self._engine
        call = engine.batch_transfer_sync_read if self._reads else engine.batch_transfer_sync_write
        for start in range(0, case.num_blocks, _BATCH):
            here = here_N[start : start + _BATCH] * case.block_bytes + self._memory.address
            far = there_N[start : start + _BATCH] * case.block_bytes + self._other.address
            sizes = [case.block_bytes] * len(here)
            _check(call(there, here.tolist(), far.tolist(), sizes), call.__name__)


class _Source(_End):
    def stage(self, move: Move) -> bytes:
        return b""

    def send(self, move: Move) -> float | None:
        began_s = time.monotonic()
        if not self._reads:
            self._move(move.case, move.source_N, move.target_N)
        self._aside.tell()
        return began_s if move.case.standing or not self._reads else None


class _Sink(_End):
    def arm(self, move: Move, staged: bytes) -> None:
        pass

    def receive(self, move: Move) -> tuple[float | None, float]:
        self._aside.hear()
        if not self._reads:
            return None, time.monotonic()
        began_s = None if move.case.standing else time.monotonic()
        self._move(move.case, move.target_N, move.source_N)
        return began_s, time.monotonic()


def _check(code: int, what: str) -> None:
    if code:
        raise RuntimeError(f"{what} returned {code}")


source = _Source
sink = _Sink
