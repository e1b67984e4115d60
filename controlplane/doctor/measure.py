"""Both ends of a measurement: a real source over test bytes, and a real sink that fetches them.

Measured is what a decode worker would see: from asking until the bytes are verified. The source
runs in a thread of the process that serves a peer, and in a process of its own
(`python -m controlplane.doctor.measure`) when one machine measures itself: that prints its leases
as a line of JSON and lends until its standard input ends.
"""

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from select import select
from statistics import median
from typing import Final

import msgspec
import numpy as np

from controlplane.doctor.trial import Measured, Outcome, TrialLeases, Unusable
from kvtransfer.endings import FetchEnd, Landed
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.sink.sink import Sink
from kvtransfer.source.source import Source
from protocol.ids import WorkerId, new_epoch
from protocol.layout import KvLayout, compat_hash
from protocol.messages import Ticket
from protocol.process.machine import free_memory_bytes

LAYOUT: Final = KvLayout(
    num_layers=8, num_kv_heads=8, head_dim=64, block_tokens=16, dtype="bfloat16"
)
"""256 KiB a block, as of a model of a billion parameters."""
COMPAT: Final = compat_hash(LAYOUT, model_revision="baton doctor")
WARM_BLOCKS: Final = 16
"""4 MiB: opens the link, and is the measurement where the way is slow."""
BULK_BLOCKS: Final = 256
"""64 MiB: beyond the caches of most machines."""
NUM_BULK: Final = 8
NUM_SINGLE: Final = 200
"""Enough for a p99."""
LEND_S: Final = 30.0
"""Every lease ends by then, and with them this process."""
REACH_S: Final = 3.5
"""To open the link: a dead host shows within the 3 s the link itself gives it."""
MEASURE_S: Final = 1.5
"""To measure, the link being open."""


class TrialSource:
    """Lends until closed. Raises TransferError when it cannot listen."""

    def __init__(self, *, host: str, transports: Sequence[str]) -> None:
        self._memory = BlockMemory.create(num_blocks=pool_blocks(), block_bytes=LAYOUT.block_bytes)
        np.frombuffer(self._memory.blocks, dtype=np.uint8)[:] = 0x5A  # take the pages now
        self._transports = transports
        self._source = Source(
            memory=self._memory,
            layout=LAYOUT,
            worker=WorkerId("doctor"),
            epoch=new_epoch(),
            compat=COMPAT,
            on_lease_end=lambda end: None,
            host=host,
            lease_ttl_s=LEND_S,
            transports=transports,
        )

    def leases(self) -> tuple[TrialLeases, ...]:
        """One for each transport, to be fetched within LEND_S."""
        return tuple(self._leases_of(transport) for transport in self._transports)

    def close(self) -> None:
        self._source.close()
        self._memory.close()

    def _leases_of(self, transport: str) -> TrialLeases:
        return TrialLeases(
            transport=transport,
            warm=self._lend(WARM_BLOCKS),
            bulk=tuple(self._lend(self._memory.num_blocks) for _ in range(NUM_BULK)),
            single=tuple(self._lend(1) for _ in range(NUM_SINGLE)),
        )

    def _lend(self, num_blocks: int) -> Ticket:
        num_tokens = num_blocks * LAYOUT.block_tokens
        ticket = self._source.open_lease(block_ids=range(num_blocks), num_tokens=num_tokens)
        self._source.finish(ticket.lease, b"doctor")
        return ticket


def measure(leases: TrialLeases) -> Outcome:
    """Fetches by the leases' transport within REACH_S + MEASURE_S; a failure is an outcome too."""
    num_blocks = leases.bulk[0].num_tokens // LAYOUT.block_tokens
    memory = BlockMemory.create(num_blocks=num_blocks, block_bytes=LAYOUT.block_bytes, helped=True)
    sink = Sink(
        memory=memory,
        layout=LAYOUT,
        worker=WorkerId("doctor"),
        compat=COMPAT,
        transports=(leases.transport,),
        allow_fallback=False,
    )
    try:
        return _measure(leases, sink)
    except _Broken as error:
        return Unusable(transport=leases.transport, why=str(error))
    finally:
        sink.close()
        memory.close()


def pool_blocks() -> int:
    """BULK_BLOCKS, fewer where memory is short: an eighth of what is free."""
    return max(WARM_BLOCKS, min(BULK_BLOCKS, free_memory_bytes() // 8 // LAYOUT.block_bytes))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Broken(Exception):
    """A fetch did not land; says why."""


def _measure(leases: TrialLeases, sink: Sink) -> Measured:
    _fetch(sink, leases.single[0], deadline_s=REACH_S)
    until = time.monotonic() + MEASURE_S
    seconds = _bulk(leases, sink, until=until)
    singles = [seconds[0][1]]
    for ticket in leases.single[1:]:
        if time.monotonic() > until:
            break
        singles.append(_fetch(sink, ticket, deadline_s=MEASURE_S))
    rates = [num_bytes / took_s / 1e9 for num_bytes, took_s in seconds]
    times_us = [1e6 * single for single in (singles[1:] or singles)]
    return Measured(
        transport=leases.transport,
        gb_per_s=round(median(rates), 3),
        best_gb_per_s=round(max(rates), 3),
        p50_us=round(percentile(times_us, 0.5), 1),
        p99_us=round(percentile(times_us, 0.99), 1),
        block_bytes=LAYOUT.block_bytes,
        total_bytes=seconds[0][0],
    )


def _bulk(leases: TrialLeases, sink: Sink, *, until: float) -> list[tuple[int, float]]:
    """Bytes and seconds of each bulk fetch for two thirds of the time, the first left out: it
    takes the pages. Of the small one alone where the way is too slow for them."""
    small_bytes = _num_bytes(leases.warm)
    small = (small_bytes, _fetch(sink, leases.warm, deadline_s=REACH_S))
    large_bytes = _num_bytes(leases.bulk[0])
    done: list[tuple[int, float]] = []
    expected_s = small[1] * large_bytes / small_bytes
    for ticket in leases.bulk:
        if time.monotonic() + expected_s > until - MEASURE_S / 3:
            break
        expected_s = _fetch(sink, ticket, deadline_s=MEASURE_S)
        done.append((large_bytes, expected_s))
    return done[1:] or done or [small]


def _fetch(sink: Sink, ticket: Ticket, *, deadline_s: float) -> float:
    """Seconds until a whole lease has landed. Raises _Broken."""
    ended = threading.Event()
    ends: list[FetchEnd] = []

    def tell(end: FetchEnd) -> None:
        ends.append(end)
        ended.set()

    blocks = range(ticket.num_tokens // LAYOUT.block_tokens)
    began = time.monotonic()
    sink.fetch(ticket=ticket, indices=blocks, block_ids=blocks, deadline_s=deadline_s, on_end=tell)
    ended.wait(deadline_s + 1.0)
    took_s = time.monotonic() - began
    match ends:
        case [Landed()]:
            return took_s
        case [end]:
            raise _Broken(str(getattr(end, "error", "") or getattr(end, "reason", "")))
        case _:
            raise _Broken(f"no end within {deadline_s:.1f} s")


def _num_bytes(ticket: Ticket) -> int:
    return ticket.num_tokens // LAYOUT.block_tokens * LAYOUT.block_bytes


def main(transports: Sequence[str]) -> None:
    with closing(TrialSource(host="127.0.0.1", transports=transports)) as source:
        sys.stdout.buffer.write(msgspec.json.encode(source.leases()) + b"\n")
        sys.stdout.buffer.flush()
        select([sys.stdin], [], [], LEND_S)


if __name__ == "__main__":
    main(sys.argv[1:])
