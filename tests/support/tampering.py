"""Blocks that change between their arrival and their verification: a fault for tests."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from kvtransfer.chunk import Landing
from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.memory.pool import Pool
from kvtransfer.messages import Chunk, FetchId
from kvtransfer.sink import fetches
from kvtransfer.sink.means import SinkMeans
from kvtransfer.sink.receiver import Receiver
from kvtransfer.sum_kinds import SumKind

Tamper = Callable[[memoryview], None]
"""Sees the bytes of a block, and may change them."""


@contextmanager
def tampered(tamper: Tamper) -> Iterator[None]:
    """Inside, `tamper` sees every block that any sink of this process receives, before it is
    verified, on the sink's thread."""

    class TamperingReceiver(Receiver):
        def __init__(self, means: SinkMeans, **more: Any) -> None:
            super().__init__(means, **more)
            self.pool = means.memory
            self.begun: dict[int, Landing] = {}

        def begin_chunk(self, chunk: Chunk) -> Landing | None:
            landing = super().begin_chunk(chunk)
            if landing is not None:
                self.begun[id(landing)] = landing
            return landing

        def end_chunk(
            self, landing: Landing, sums_P: NDArray[np.uint64] | None, *, broken: str = ""
        ) -> None:
            begun = self.begun.pop(id(landing), None)
            if sums_P is not None and begun is not None:
                kind = _kind_of(sums_P, self.pool, landing)
                for slot in landing.pieces_P["slot"].tolist():
                    _change(self.pool, slot, tamper)
                sums_P = self.pool.checksums(landing.target, kind)
            super().end_chunk(landing, sums_P, broken=broken)

        def stop_writes(self, fetch: FetchId | None = None) -> None:
            super().stop_writes(fetch)
            stopped = {key for key, x in self.begun.items() if fetch in (None, x.fetch)}
            for key in stopped:
                del self.begun[key]

    with patch.object(fetches, "Receiver", TamperingReceiver):
        yield


def _kind_of(sums_P: NDArray[np.uint64], pool: Pool, landing: Landing) -> SumKind:
    """What kind of checksums these are, of what has landed."""
    kinds = (x for x in pool.sum_kinds if (pool.checksums(landing.target, x) == sums_P).all())
    return next(kinds, pool.sum_kinds[0])


def _change(memory: Pool, block_id: int, tamper: Tamper) -> None:
    match memory:
        case BlockMemory():
            tamper(memory.block(block_id))
        case DeviceMemory():
            content = bytearray(memory.read(block_id))
            tamper(memoryview(content))
            memory.write(block_id, bytes(content))
        case _:
            raise AssertionError(f"no way to change a {type(memory).__name__}")
