"""What the NCCL plane needs of a communication library: two ranks, sends and receives, an abort.

`kvtransfer.device.libnccl` is the real one, `support.fake_collectives` stands for it; one contract
suite holds for both. Nothing here waits: a call begins something, and `settled` says later whether
the library has done its part of it, after which an event of the stream tells the rest.
"""

from collections.abc import Sequence
from typing import Protocol

from kvtransfer.device.driver import Stream
from kvtransfer.native.copy import Span

UNIQUE_ID_BYTES = 128
PATIENCE_S = 5.0
"""Transfers have 32 MiB, a few at a time; a lease lives 6 s without its peer."""


class Communicator(Protocol):
    """One of two ranks. Used by one thread; a peer that dies may leave its work undone forever."""

    def settled(self) -> bool:
        """The last call has been carried out, or launched on its stream; only then the next may
        follow. Raises PeerLost when the communicator has failed."""

    def send(self, spans: Sequence[Span], stream: Stream) -> None:
        """Begin to send these to the other rank, in this order and one launch. However many are
        sent at a time, they may be received in other numbers."""

    def receive(self, spans: Sequence[Span], stream: Stream) -> None:
        """Begin to receive into these, as `send`: each has the bytes that were sent."""

    def abort(self) -> None:
        """Break off whatever is under way, on the device too. May take a while: call it from a
        thread of its own. After it no work of this communicator touches any memory."""


class Collectives(Protocol):
    """A library on one device."""

    version: str
    patience_s: float
    """For one transfer, and four times that for the other rank to come; then the peer is lost."""

    def why_not(self, *, ours: str, theirs: str) -> str:
        """Why a rank on our device cannot meet one on theirs; empty when it can."""

    def unique_id(self) -> bytes:
        """What two ranks meet by, once."""

    def join(self, unique_id: bytes, *, rank: int) -> Communicator:
        """Begin to meet the other rank; up when `settled`. Raises TransferError."""
