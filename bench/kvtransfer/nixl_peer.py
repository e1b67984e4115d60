"""NIXL over its UCX plugin: prepared descriptor lists, one transfer by index arrays a move.

Options: "write" (the source writes and notifies) or "read" (the sink reads); with NIXL's progress
"thread", or both ends "poll"; with UCX's error handling "peer" (the default) or "none". A read
that waits is begun by a byte on a unix socket: its receiver sleeps until then.
"""

import time
from typing import Any, Final

import msgspec
import numpy as np
from nixl._api import nixl_agent, nixl_agent_config
from numpy.typing import NDArray

from bench.kvtransfer.case import Case, Move
from bench.kvtransfer.memory import Memory
from bench.kvtransfer.mover import Place
from bench.kvtransfer.polling import poll

_NOTE: Final = b"written"


class _Card(msgspec.Struct, frozen=True):
    """What one end tells the other of itself."""

    metadata: bytes
    address: int


class _End:
    """What both ends have: an agent, a registered pool, descriptor lists of both pools."""

    def __init__(self, place: Place) -> None:
        operation, progress, errors = place.option.split()
        self._aside = place.aside
        self._reads = operation == "read"
        self._polls = progress == "poll"
        self._operation = operation.upper()
        self._memory = Memory(place.pool_bytes, setting=place.setting)
        config = nixl_agent_config(enable_prog_thread=not self._polls, backends=[])
        self._agent: Any = nixl_agent(place.side, config)
        self._agent.create_backend("UCX", {"ucx_error_handling_mode": errors})
        self._agent.register_memory([(self._memory.address, place.pool_bytes, 0, "")], "DRAM")
        card = _Card(self._agent.get_agent_metadata(), self._memory.address)
        told = place.aside.swap(msgspec.msgpack.encode(card))
        self._other = msgspec.msgpack.decode(told, type=_Card)
        self._name = self._agent.add_remote_agent(self._other.metadata)
        self._lists: tuple[Any, Any] | None = None
        self._transfer: Any = None

    def open(self, case: Case) -> NDArray[np.uint64]:
        for each in self._lists or ():
            each.release()
        offsets = np.arange(case.pool_blocks, dtype=np.uint64) * np.uint64(case.block_bytes)
        self._lists = (
            self._prepare("NIXL_INIT_AGENT", self._memory.address, offsets, case),
            self._prepare(self._name, self._other.address, offsets, case),
        )
        return self._memory.words[: case.pool_bytes // 8]

    def settle(self, move: Move) -> None:
        if self._transfer is not None:
            self._transfer.release()
            self._transfer = None

    def close(self) -> None:
        for each in self._lists or ():
            each.release()
        self._agent.remove_remote_agent(self._name)

    def _prepare(self, name: str, address: int, offsets: NDArray[np.uint64], case: Case) -> Any:
        table = np.zeros((len(offsets), 3), dtype=np.uint64)
        table[:, 0] = offsets + np.uint64(address)
        table[:, 1] = case.block_bytes
        return self._agent.prep_xfer_dlist(name, table, "DRAM")

    def _move(self, here_N: NDArray[np.int64], there_N: NDArray[np.int64]) -> None:
        assert self._lists is not None
        here, there = self._lists
        self._transfer = self._agent.make_prepped_xfer(
            self._operation, here, here_N.astype(np.int32), there, there_N.astype(np.int32), _NOTE
        )
        state = self._agent.transfer(self._transfer)
        if state == "PROC":
            poll(lambda: self._agent.check_xfer_state(self._transfer) != "PROC")
            state = self._agent.check_xfer_state(self._transfer)
        if state != "DONE":
            raise RuntimeError(f"the transfer ended as {state}")

    def _take_note(self) -> None:
        poll(lambda: any(_NOTE in notes for notes in self._agent.get_new_notifs().values()))


class _Source(_End):
    def stage(self, move: Move) -> bytes:
        return b""

    def send(self, move: Move) -> float | None:
        began_s = time.monotonic()
        if self._reads:
            self._aside.tell()
            if self._polls:
                self._take_note()  # a read makes progress here too
        else:
            self._move(move.source_N, move.target_N)
        return began_s if move.case.standing or not self._reads else None


class _Sink(_End):
    def arm(self, move: Move, staged: bytes) -> None:
        pass

    def receive(self, move: Move) -> tuple[float | None, float]:
        if not self._reads:
            self._take_note()
            return None, time.monotonic()
        self._aside.hear()
        began_s = None if move.case.standing else time.monotonic()
        self._move(move.target_N, move.source_N)
        return began_s, time.monotonic()


source = _Source
sink = _Sink
