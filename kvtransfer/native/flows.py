"""Bytes between non-blocking sockets and scattered ranges of memory, in C where it can be built.

A `Flow` is the body of one frame on its way through one socket; `send` and `receive` go on with
many at a time, without the GIL. Without a compiler a twin of writev and readv does the same,
slower. Does not know what the bytes are.
"""

import ctypes
import errno
import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvtransfer.native.copy import Span
from kvtransfer.native.library import OUTSIDE, SUM_BYTES, SUM_NUMBERS, FlowFields, kernels
from kvtransfer.plan import Ranges
from kvtransfer.sum_kinds import XXH3, SumKind

MOVING: Final = 0
MOVED: Final = 1
PEER_CLOSED: Final = 2
_SUM_ALIGNMENT: Final = 64
WAIT_S: Final = 100e-6
"""Longest sleep for the next bytes inside one call: a turn of Python takes as long."""
TURN_S: Final = 2e-3
"""Longest call, however slowly bytes come: control messages wait that long."""
_TWIN_BUFFERS: Final = 64


class Flow:
    """One frame's bytes: `head`, when it is sent, then the ranges, in order."""

    def __init__(
        self, fd: int, memory: Span, ranges: Ranges, *, head: bytes = b"",
        sum_kind: SumKind | None = None,
    ) -> None:  # fmt: skip
        """`sum_kind`: the checksum of each piece is taken as it becomes whole. Memory and `fd` must
        stay while the flow is gone on with. Raises ValueError for ranges outside the memory."""
        self.memory = memory
        self.ranges = ranges
        self.head = head
        self.num_bytes, is_summed = _measure(memory, ranges, sum_kind)
        num_pieces = len(ranges.starts_P) - 1
        self.sums_P = np.zeros(num_pieces, np.uint64) if is_summed else None
        """Of the pieces that are whole; None when nothing takes them on the way."""
        self.c = FlowFields(
            head=_at(np.frombuffer(head, np.uint8)), base=memory.address,
            offsets=_at(ranges.offsets_R), sizes=_at(ranges.sizes_R), starts=_at(ranges.starts_P),
            sums=None if self.sums_P is None else _at(self.sums_P),
            sum=self._sum_at() if is_summed else None, kind=SUM_NUMBERS[sum_kind or XXH3],
            head_bytes=len(head), num_ranges=len(ranges.sizes_R), num_pieces=num_pieces, fd=fd,
        )  # fmt: skip

    def _sum_at(self) -> int:
        """Where the kernels keep the sum of the piece that is coming."""
        self._sum = np.empty(SUM_BYTES + _SUM_ALIGNMENT, np.uint8)
        return -(-_at(self._sum) // _SUM_ALIGNMENT) * _SUM_ALIGNMENT

    @property
    def state(self) -> int:
        """MOVING, MOVED, PEER_CLOSED, or a negated errno."""
        return int(self.c.state)

    @property
    def left_bytes(self) -> int:
        """Of the ranges."""
        return self.num_bytes - int(self.c.moved_bytes)

    @property
    def head_left(self) -> bytes:
        """What is not sent of the head."""
        return self.head[len(self.head) - self.c.head_bytes :]


def send(flows: Sequence[Flow], *, budget: int) -> int:
    """Send what the sockets take of flows that have not ended; returns when one has, or after a
    bounded while. Bytes of ranges sent."""
    return _flow(flows, (), sending=True, budget=budget)


def receive(flows: Sequence[Flow], *, idle: Sequence[int], budget: int) -> int:
    """Receive what has come for flows that have not ended; returns when one has, when a socket
    of `idle` is readable, or after a bounded while. Bytes of ranges received."""
    return _flow(flows, idle, sending=False, budget=budget)


def repeated(num_bytes: int, memory: Span) -> Ranges:
    """`num_bytes` as often over the whole of `memory` as it takes: to send zeros, to discard."""
    num_whole, rest = divmod(num_bytes, memory.num_bytes)
    sizes_R = np.full(num_whole + bool(rest), memory.num_bytes, np.int64)
    if rest:
        sizes_R[-1] = rest
    return Ranges(np.zeros_like(sizes_R), sizes_R, np.array([0, len(sizes_R)], np.int64))


def _flow(flows: Sequence[Flow], idle: Sequence[int], *, sending: bool, budget: int) -> int:
    library = kernels()
    if library is None:
        return sum(_Twin(flow).go_on(sending=sending, budget=budget) for flow in flows)
    pointers = (ctypes.c_void_p * len(flows))(*(ctypes.addressof(flow.c) for flow in flows))
    moved = library.baton_kv_flow(
        pointers, len(flows), (ctypes.c_int64 * len(idle))(*idle), len(idle), int(sending),
        budget, int(WAIT_S * 1e6), int(TURN_S * 1e6),
    )  # fmt: skip
    assert moved >= 0, "more flows than one call takes"
    return int(moved)


def _measure(memory: Span, ranges: Ranges, kind: SumKind | None) -> tuple[int, bool]:
    """Bytes of the ranges, and whether the kernels sum their pieces. Raises ValueError."""
    library = kernels()
    if library is None:
        memory.check(ranges)
        return int(ranges.sizes_R.sum()), False
    num_bytes = ctypes.c_int64(0)
    why_not = library.baton_kv_check(
        0, None, memory.num_bytes, _at(ranges.offsets_R), _at(ranges.sizes_R),
        len(ranges.sizes_R), _at(ranges.starts_P), len(ranges.starts_P) - 1,
        SUM_NUMBERS[kind or XXH3], ctypes.byref(num_bytes),
    )  # fmt: skip
    if why_not == OUTSIDE:
        raise ValueError("ranges: one lies outside its pool")
    return num_bytes.value, kind is not None and not why_not


def _at(array: NDArray[Any]) -> int:
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


class _Twin:
    """Moves one flow without the kernels; keeps the flow's own cursor, and never waits."""

    def __init__(self, flow: Flow) -> None:
        whole: Any = (ctypes.c_ubyte * flow.memory.num_bytes).from_address(flow.memory.address)
        self._span = memoryview(whole).cast("B")
        self._flow = flow

    def go_on(self, *, sending: bool, budget: int) -> int:
        total, c = 0, self._flow.c
        move = os.writev if sending else os.readv
        while c.state == MOVING and total < budget:
            try:
                num_bytes = move(c.fd, self._buffers())
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                c.state = -(error.errno or errno.EIO)
                break
            if not num_bytes:
                c.state = PEER_CLOSED
                break
            total += self._advance(num_bytes)
        return total

    def _buffers(self) -> list[memoryview]:
        c, ranges = self._flow.c, self._flow.ranges
        head = self._flow.head_left
        buffers = [memoryview(head)] if head else []
        skip = c.skip
        for at in range(c.range, c.num_ranges):
            start, size = int(ranges.offsets_R[at]), int(ranges.sizes_R[at])
            if size:
                buffers.append(self._span[start + skip : start + size])
            skip = 0
            if len(buffers) >= _TWIN_BUFFERS:
                break
        return buffers

    def _advance(self, num_bytes: int) -> int:
        c, sizes_R = self._flow.c, self._flow.ranges.sizes_R
        of_head = min(num_bytes, c.head_bytes)
        c.head_bytes -= of_head
        left = num_bytes - of_head
        while c.range < c.num_ranges and left >= sizes_R[c.range] - c.skip:
            left -= int(sizes_R[c.range]) - c.skip
            c.range += 1
            c.skip = 0
        c.skip += left
        c.moved_bytes += num_bytes - of_head
        if not c.head_bytes and c.range == c.num_ranges:
            c.state = MOVED
        return num_bytes - int(of_head)
