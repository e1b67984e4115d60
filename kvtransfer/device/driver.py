"""What a data plane needs of a device: memory that other processes can map, streams, events.

`kvtransfer.device.cuda` is the real driver, `support.fake_driver` stands for it without a GPU; one
contract suite holds for both. Nothing here waits for the device: work is launched, and asked later
whether it has happened. A device that fails raises TransferError from whichever call notices.
"""

# Shapes: R ranges in P pieces; the 5 rows of a table are those of `kvtransfer.device.table`.

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvtransfer.native.copy import Span
from protocol.errors import TransferError


class CannotMap(TransferError):
    """Memory of another process or device cannot be mapped here; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What another process of this host opens an allocation by."""

    handle: bytes
    """At most 128 bytes, to be told."""
    fd: int
    """To be handed over; the caller closes it."""


class Mark(Protocol):
    """A point in a stream's work, or in the engine's."""

    def happened(self) -> bool:
        """All launched before is done, and visible to all later. Raises TransferError."""


class Stream(Protocol):
    """Work in order, beside that of other streams."""

    @property
    def handle(self) -> int:
        """What libraries that launch on it know it by."""

    def record(self) -> Mark: ...

    def wait_for(self, mark: Mark) -> None:
        """What is launched from now on happens after `mark`, of any stream of this driver."""

    def close(self) -> None:
        """Whoever asked for the stream gives it back, and launches nothing on it any more; what is
        launched still happens, and its marks tell. Never waits; idempotent."""


class Sums(Protocol):
    """The checksums of a launched copy or sum."""

    def happened(self) -> bool:
        """It is done. Never waits. Raises TransferError."""

    def take_sums(self) -> NDArray[np.uint64]:
        """`[piece]`, once it has happened."""


class Driver(Protocol):
    """One device. Methods may be called from any thread, a stream's work from one at a time."""

    name: str
    device: str
    """What names this device to other processes of the host."""

    def allocate(self, num_bytes: int, *, zeros: bool = True) -> Span:
        """Aligned to 256 bytes; with `zeros` it waits until the device has made them. Raises
        TransferError when there is no room."""

    def free(self, span: Span) -> None:
        """May wait for the device: never on a thread that renews leases. Peers keep what they
        mapped."""

    def export(self, span: Span) -> Exported:
        """Raises TransferError when it cannot be handed on."""

    def open(self, handle: bytes, fd: int, *, num_bytes: int, device: str) -> Span:
        """Map an exported allocation, of `device`; `fd` stays the caller's. The memory stays until
        `close`, whatever becomes of its owner. Raises CannotMap."""

    def close(self, span: Span) -> None:
        """Give back what `open` gave; no launched work may use it any more. Waits as `free`."""

    def stream(self) -> Stream:
        """A new stream, beside the engine's and of lower priority; the caller closes it."""

    def mark(self) -> Mark:
        """The point that the engine's work has reached: the calling thread's current stream."""

    def copy(
        self, stream: Stream, *, target: Span, source: Span, table_5R: NDArray[np.int64],
        num_pieces: int,
    ) -> Sums:  # fmt: skip
        """Launch a copy of ranges over ranges; the sums are of what was written. The caller has
        checked that all of them lie inside."""

    def sum(
        self, stream: Stream, *, source: Span, table_5R: NDArray[np.int64], num_pieces: int
    ) -> Sums:
        """Launch the sums alone."""

    def register(self, span: Span) -> None:
        """Page-lock memory of this host, so that copies from and to it run beside all else. Raises
        TransferError where that is not to be had."""

    def unregister(self, span: Span) -> None:
        """Before the memory goes; no launched work may use it any more."""

    def download(self, stream: Stream, *, source: Span, target: Span) -> Mark:
        """Launch a copy of device memory into as many bytes of registered host memory; the mark is
        after it."""

    def upload(self, stream: Stream, *, source: Span, target: Span) -> Mark:
        """Launch a copy of registered host memory into as many bytes of device memory; the mark is
        after it."""

    def read(self, span: Span, offset: int, num_bytes: int) -> bytes:
        """Waits for the device: for tests and tools."""

    def write(self, span: Span, offset: int, content: bytes) -> None:
        """Launches on the engine's stream and waits for nothing: for tests and tools."""
