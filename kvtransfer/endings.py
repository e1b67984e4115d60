"""How fetches and leases end: values told to the workers, each exactly once."""

from dataclasses import dataclass
from typing import Literal

from protocol.errors import TransferError
from protocol.ids import LeaseId, WorkerId

LeaseEndReason = Literal["released", "expired", "failed", "closed"]
"""Released: landed or not wanted. Expired: nobody renewed it, or its holder is gone. Failed: its
owner took it back. Closed: the source closes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """Every slot holds verified bytes."""

    note: bytes
    transport: str
    transport_why: str
    num_blocks: int
    num_bytes: int
    fetch_s: float
    """From `fetch` to here."""
    first_s: float
    """From `fetch` to the first bytes verified; all of it when there was nothing to move."""
    flow_s: float
    """Its part in which bytes were on their way or being verified, the waits between blocks for
    a prefill that still computes left out."""
    exposed_s: float
    """Its part after the source was told that everything is written."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Not all blocks arrived."""

    error: TransferError
    landed: tuple[int, ...] = ()
    """Indices of the slots that hold verified bytes: another source need not send those."""
    quarantined: tuple[int, ...] = ()
    """Blocks of slots that someone may still write into; the sink's `on_quiet` returns them."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """The fetch was cancelled, or its sink closed."""

    reason: str
    landed: tuple[int, ...] = ()
    quarantined: tuple[int, ...] = ()
    """Both as of `Lost`."""


FetchEnd = Landed | Lost | Aborted


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnd:
    """The end of a lease: its blocks may be freed."""

    lease: LeaseId
    reason: LeaseEndReason
    detail: str
    transport: str
    """Empty when nobody fetched."""
    peer: WorkerId
    """Who fetched; empty when nobody did."""
    num_blocks: int
    """Blocks sent, counting those sent again."""
    num_bytes: int
