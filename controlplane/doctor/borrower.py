"""The end that fetches in a measurement: a real sink, one transport, bounded time.

Measures what a decode worker would see: from asking until the bytes are verified.
"""

import threading
import time
from statistics import median
from typing import Final

from controlplane.doctor.trial import COMPAT, LAYOUT, Measured, Offer, Outcome, Unusable, percentile
from kvtransfer.endings import FetchEnd
from kvtransfer.endings import Landed as FetchLanded
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.sink.sink import Sink
from protocol.ids import WorkerId
from protocol.messages import Ticket

REACH_S: Final = 3.5
"""To open the link: a dead host shows within the 3 s the link itself gives it."""
MEASURE_S: Final = 1.5
"""To measure, the link being open."""


class _Broken(Exception):
    """A fetch did not land; says why."""


def borrow(offer: Offer) -> Outcome:
    """Measures the offer's transport within REACH_S + MEASURE_S; never raises for a failure."""
    num_blocks = offer.bulk[0].num_tokens // LAYOUT.block_tokens
    memory = BlockMemory.create(num_blocks=num_blocks, block_bytes=LAYOUT.block_bytes, helped=True)
    sink = Sink(
        memory=memory,
        layout=LAYOUT,
        worker=WorkerId("doctor"),
        compat=COMPAT,
        transports=(offer.transport,),
        allow_fallback=False,
    )
    try:
        return _measure(offer, sink)
    except _Broken as error:
        return Unusable(transport=offer.transport, why=str(error))
    finally:
        sink.close()
        memory.close()


def _measure(offer: Offer, sink: Sink) -> Measured:
    _fetch(sink, offer.single[0], deadline_s=REACH_S)
    until = time.monotonic() + MEASURE_S
    seconds = _bulk(offer, sink, until=until)
    singles = [seconds[0][1]]
    for ticket in offer.single[1:]:
        if time.monotonic() > until:
            break
        singles.append(_fetch(sink, ticket, deadline_s=MEASURE_S))
    rates = [num_bytes / took_s / 1e9 for num_bytes, took_s in seconds]
    times_us = [1e6 * single for single in (singles[1:] or singles)]
    return Measured(
        transport=offer.transport,
        gb_per_s=round(median(rates), 3),
        best_gb_per_s=round(max(rates), 3),
        p50_us=round(percentile(times_us, 0.5), 1),
        p99_us=round(percentile(times_us, 0.99), 1),
        block_bytes=LAYOUT.block_bytes,
        total_bytes=seconds[0][0],
    )


def _bulk(offer: Offer, sink: Sink, *, until: float) -> list[tuple[int, float]]:
    """Bytes and seconds of each bulk fetch for two thirds of the time, the first left out: it
    takes the pages. Of the small one alone where the way is too slow for them."""
    small_bytes = _num_bytes(offer.warm)
    small = (small_bytes, _fetch(sink, offer.warm, deadline_s=REACH_S))
    large_bytes = _num_bytes(offer.bulk[0])
    done: list[tuple[int, float]] = []
    expected_s = small[1] * large_bytes / small_bytes
    for ticket in offer.bulk:
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
        case [FetchLanded()]:
            return took_s
        case [end]:
            raise _Broken(str(getattr(end, "error", "") or getattr(end, "reason", "")))
        case _:
            raise _Broken(f"no end within {deadline_s:.1f} s")


def _num_bytes(ticket: Ticket) -> int:
    return ticket.num_tokens // LAYOUT.block_tokens * LAYOUT.block_bytes
