"""ZeroMQ: one message a block, sent without a copy, received straight into the block.

Options: "ipc" or "tcp".
"""

import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import zmq
from numpy.typing import NDArray

from bench.kvtransfer.case import Case, Move
from bench.kvtransfer.memory import Memory
from bench.kvtransfer.mover import Place

_WITHIN_MS: Final = 30_000


class _End:
    def __init__(self, place: Place) -> None:
        self._memory = Memory(place.pool_bytes, setting=place.setting)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH if place.side == "source" else zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, _WITHIN_MS)
        self._socket.setsockopt(zmq.SNDTIMEO, _WITHIN_MS)
        self._folder = ""
        if place.side == "source":
            self._socket.connect(place.aside.hear().decode())
        elif place.option == "tcp":
            port = self._socket.bind_to_random_port("tcp://127.0.0.1")
            place.aside.tell(f"tcp://127.0.0.1:{port}".encode())
        else:
            self._folder = tempfile.mkdtemp()
            self._socket.bind(f"ipc://{self._folder}/socket")
            place.aside.tell(f"ipc://{self._folder}/socket".encode())

    def open(self, case: Case) -> NDArray[np.uint64]:
        self._blocks = [
            self._memory.block(block, case.block_bytes).data for block in range(case.pool_blocks)
        ]
        return self._memory.words[: case.pool_bytes // 8]

    def settle(self, move: Move) -> None:
        pass

    def close(self) -> None:
        self._socket.close()
        self._context.term()
        if self._folder:
            Path(self._folder, "socket").unlink(missing_ok=True)
            Path(self._folder).rmdir()


class _Source(_End):
    def stage(self, move: Move) -> bytes:
        return b""

    def send(self, move: Move) -> float | None:
        began_s = time.monotonic()
        for block in move.source_N:
            self._socket.send(self._blocks[block], copy=False)
        return began_s


class _Sink(_End):
    def arm(self, move: Move, staged: bytes) -> None:
        pass

    def receive(self, move: Move) -> tuple[float | None, float]:
        for block in move.target_N:
            self._socket.recv_into(self._blocks[block])
        return None, time.monotonic()


source = _Source
sink = _Sink
