"""Ours, through its public doors: a `Source` in one process, a `Sink` in the other.

Real leases, generations and checksums. Bulk: the blocks are leased, written and published by
`Source.finish` (their checksums are taken then, as during a prefill); the clock runs from just
before `Sink.fetch` to `on_end(Landed)`. Standing (latency, and bulk from publish): the fetch waits
already; the clock runs from just before `Source.finish` says that the blocks are written. Every
move is a fresh generation of its blocks, so no checksum is remembered from the move before.

Options: "both" (both processes copy), "one" (the sink does), "sleep" (as shipped), "spin" (the
sink spins), "tcp". In the tuned setting pools take huge pages (`kv_huge_pages`), as everyone's do.
"""

import queue
import time
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.kvtransfer.case import Case, Move
from bench.kvtransfer.mover import Place
from kvtransfer.endings import FetchEnd, Landed
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.sink.sink import Sink
from kvtransfer.source.source import Source
from kvtransfer.transports.base import HelpCopy
from protocol.ids import WorkerId, new_epoch
from protocol.layout import KvLayout, compat_hash
from protocol.messages import Ticket

_TTL_S: Final = 30.0
_DEADLINE_S: Final = 30.0
_SPIN_S: Final = 1.0
_QUIET_S: Final = 0.003
_BUSY: Final = 0.1
"""A process that uses less of a core than this has taken its checksums."""
_TOKEN_BYTES: Final = 2 << 10


def _layout(case: Case) -> KvLayout:
    """2 KiB a token: 2 layers, 4 heads of 64, bf16; the block size decides the tokens."""
    return KvLayout(
        num_layers=2, num_kv_heads=4, head_dim=64, dtype="bfloat16",
        block_tokens=case.block_bytes // _TOKEN_BYTES,
    )  # fmt: skip


def _words(memory: BlockMemory) -> NDArray[np.uint64]:
    return np.frombuffer(memory.blocks, dtype=np.uint64)


def _transports(option: str) -> tuple[str, ...]:
    return ("tcp",) if option == "tcp" else ("shm",)


def _help_copy(option: str) -> HelpCopy:
    """Whether the source's process copies along."""
    if option == "both":
        return "always"
    return "never" if option == "one" else "auto"


class _Source:
    def __init__(self, place: Place) -> None:
        self._option = place.option
        self._huge = place.setting == "tuned"
        self._source: Source | None = None
        self._ends: queue.SimpleQueue[str] = queue.SimpleQueue()

    def open(self, case: Case) -> NDArray[np.uint64]:
        self.close()
        layout = _layout(case)
        self._memory = memory = BlockMemory.create(
            num_blocks=case.pool_blocks, block_bytes=case.block_bytes, huge=self._huge
        )
        self._generations_N = memory.generations_N
        self._source = Source(
            memory=memory, layout=layout, worker=WorkerId("bench-source"), epoch=new_epoch(),
            compat=compat_hash(layout, model_revision="bench"), lease_ttl_s=_TTL_S,
            transports=_transports(self._option), help_copy=_help_copy(self._option),
            on_lease_end=lambda end: self._ends.put(end.reason),
        )  # fmt: skip
        return _words(memory)

    def stage(self, move: Move) -> bytes:
        assert self._source is not None
        self._generations_N[move.source_N] += np.uint64(1)
        self._ticket = self._source.open_lease(
            block_ids=move.source_N.tolist(),
            num_tokens=move.case.total_bytes // _TOKEN_BYTES,
        )
        if not move.case.standing:
            self._finish()
            _rest()
        return msgspec.msgpack.encode(self._ticket)

    def send(self, move: Move) -> float | None:
        if not move.case.standing:
            return None
        began_s = time.monotonic()
        self._finish()
        return began_s

    def settle(self, move: Move) -> None:
        reason = self._ends.get(timeout=_DEADLINE_S)
        assert reason == "released", f"the lease ended as {reason}"

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._memory.close()
            self._source = None

    def _finish(self) -> None:
        """All blocks are written; nothing was published before."""
        assert self._source is not None
        self._source.finish(self._ticket.lease, b"")


class _Sink:
    def __init__(self, place: Place) -> None:
        self._option = place.option
        self._huge = place.setting == "tuned"
        self._sink: Sink | None = None
        self._ends: queue.SimpleQueue[tuple[float, FetchEnd]] = queue.SimpleQueue()

    def open(self, case: Case) -> NDArray[np.uint64]:
        self.close()
        layout = _layout(case)
        self._memory = memory = BlockMemory.create(
            num_blocks=case.pool_blocks,
            block_bytes=case.block_bytes,
            helped=True,
            huge=self._huge,
        )
        self._sink = Sink(
            memory=memory, layout=layout, worker=WorkerId("bench-sink"),
            compat=compat_hash(layout, model_revision="bench"), lease_ttl_s=_TTL_S,
            transports=_transports(self._option), allow_fallback=False,
            spin_s=_SPIN_S if self._option == "spin" else 0.0,
        )  # fmt: skip
        return _words(memory)

    def arm(self, move: Move, staged: bytes) -> None:
        self._ticket = msgspec.msgpack.decode(staged, type=Ticket)
        if move.case.standing:
            self._fetch(move)

    def receive(self, move: Move) -> tuple[float | None, float]:
        began_s = None
        if not move.case.standing:
            began_s = time.monotonic()
            self._fetch(move)
        ended_s, end = self._ends.get(timeout=_DEADLINE_S)
        if not isinstance(end, Landed):
            raise RuntimeError(f"the fetch ended as {end}")
        return began_s, ended_s

    def settle(self, move: Move) -> None:
        pass

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._memory.close()
            self._sink = None

    def _fetch(self, move: Move) -> None:
        assert self._sink is not None
        self._sink.fetch(
            ticket=self._ticket,
            indices=np.arange(len(move.target_N)),
            block_ids=move.target_N,
            deadline_s=_DEADLINE_S,
            on_end=lambda end: self._ends.put((time.monotonic(), end)),
        )


def _rest() -> None:
    """Until this process has nothing more to do for what was just published."""
    until_s = time.monotonic() + _DEADLINE_S
    while time.monotonic() < until_s:
        cpu_s = time.process_time()
        time.sleep(_QUIET_S)
        if time.process_time() - cpu_s < _BUSY * _QUIET_S:
            return
    raise TimeoutError("the source does not come to rest")


source = _Source
sink = _Sink
