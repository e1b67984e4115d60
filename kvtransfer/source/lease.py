"""A lease as a state table: what its source may send next, without clock, socket or memory.

Its events are methods; what it answers is for `kvtransfer.source.leases` to send. The fetcher's
side is `kvtransfer.sink.fetch`.
"""

from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kvtransfer.messages import FailureCode, FetchId
from kvtransfer.plan import NO_BLOCK, ascending
from protocol.ids import LeaseId
from protocol.state_table import StateTable


class LeaseStage(StrEnum):
    LEASED = "leased"
    SENDING = "sending"
    RELEASED = "released"
    EXPIRED = "expired"


class LeaseEvent(StrEnum):
    FETCHED = "fetched"
    RELEASED = "released"
    """The fetcher has everything, or wants nothing; or the owner took the lease back."""
    LAPSED = "lapsed"
    """Nobody renewed it, or its fetcher is gone."""


_L, _LE = LeaseStage, LeaseEvent
LEASE_STATES: Final = StateTable(
    {
        (_L.LEASED, _LE.FETCHED): _L.SENDING,
        (_L.LEASED, _LE.RELEASED): _L.RELEASED,
        (_L.LEASED, _LE.LAPSED): _L.EXPIRED,
        (_L.SENDING, _LE.FETCHED): _L.SENDING,
        (_L.SENDING, _LE.RELEASED): _L.RELEASED,
        (_L.SENDING, _LE.LAPSED): _L.EXPIRED,
    }
)


class FetchRefused(Exception):
    """A fetch the source will not serve. The lease goes on, unless its fetcher drops it."""

    def __init__(self, reason: str, *, code: FailureCode = "refused") -> None:
        super().__init__(reason)
        self.code: FailureCode = code


class Lease:
    """One lease as its source sees it: what is written, what was asked for, what is due."""

    def __init__(
        self, *, lease_id: LeaseId, block_ids: ArrayLike, generations: ArrayLike,
        num_tokens: int, block_tokens: int, num_groups: int = 1,
    ) -> None:  # fmt: skip
        """`block_ids` are flat, as of `protocol.layout`, with NO_BLOCK for what is not lent."""
        self.id = lease_id
        self._life = LEASE_STATES.begin(LeaseStage.LEASED, name=f"lease {lease_id}")
        self.block_ids_B = np.asarray(block_ids, np.uint32)
        self.generations_B = np.asarray(generations, np.uint64)
        self.lent_B = self.block_ids_B != NO_BLOCK
        self.num_tokens = num_tokens
        self.block_tokens = block_tokens
        self.num_groups = num_groups
        self.num_written = 0
        self.note: bytes | None = None
        self.fetch_id: FetchId | None = None
        self.attempt = 0
        self.num_sent = 0
        self._wanted_tokens = block_tokens
        """Tokens of one of the fetcher's blocks."""
        self._indices_S = self._slots_S = np.empty(0, np.uint32)
        """Of the present attempt: what was asked for, ascending."""
        self._num_taken = 0
        self._note_due = False

    @property
    def stage(self) -> LeaseStage:
        return self._life.state

    @property
    def is_over(self) -> bool:
        return self._life.is_over

    def publish(self, num_tokens: int) -> None:
        """KV of the first `num_tokens` tokens is written; what is written stays so."""
        assert num_tokens <= self.num_tokens
        self.num_written = max(self.num_written, num_tokens)

    def finish(self, note: bytes) -> None:
        """Everything is written."""
        self.publish(self.num_tokens)
        self.note = note
        self._note_due = self.fetch_id is not None

    def accept_fetch(
        self, *, fetch_id: FetchId, attempt: int, indices: ArrayLike, slots: ArrayLike,
        block_tokens: int,
    ) -> bool:  # fmt: skip
        """These are asked for, of `block_tokens` each. False: a message too late. Raises
        FetchRefused."""
        if self.is_over:
            raise FetchRefused(f"the lease is {self.stage}")
        if self.fetch_id is not None and fetch_id != self.fetch_id:
            raise FetchRefused("another fetch holds this lease")
        if attempt <= self.attempt:
            return False
        try:
            wanted = ascending(indices, slots)
        except ValueError as error:
            raise FetchRefused(str(error)) from error
        num_blocks = -(-self.num_tokens // block_tokens) * self.num_groups
        if len(wanted[0]) and wanted[0][-1] >= num_blocks:
            raise FetchRefused(f"block {wanted[0][-1]} of a lease of {num_blocks} blocks")
        self._move(LeaseEvent.FETCHED)
        self.fetch_id, self.attempt = fetch_id, attempt
        self._indices_S, self._slots_S = wanted
        self._wanted_tokens, self._num_taken = block_tokens, 0
        self._note_due = self.note is not None
        return True

    @property
    def num_ready(self) -> int:
        """Pieces that can be sent now."""
        if self.is_over:
            return 0
        if self.num_written >= self.num_tokens:
            return len(self._indices_S) - self._num_taken
        written = self.num_written // self._wanted_tokens * self.num_groups
        return int(np.searchsorted(self._indices_S, written)) - self._num_taken

    @property
    def wanted(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """Indices and slots of the present attempt, ascending."""
        return self._indices_S, self._slots_S

    def next_ready(self, limit: int) -> slice:
        """Up to `limit` of what is `wanted`, of what `take_ready` would take."""
        return slice(self._num_taken, self._num_taken + min(limit, self.num_ready))

    def take_ready(self, limit: int) -> slice:
        """Up to `limit` of what is `wanted`, to send now; each comes once an attempt."""
        taken = self.next_ready(limit)
        self.num_sent += taken.stop - taken.start
        self._num_taken = taken.stop
        return taken

    def take_note(self) -> bytes | None:
        """The note, once an attempt, after everything asked for was taken."""
        if not self._note_due or self.is_over or self._num_taken < len(self._indices_S):
            return None
        self._note_due = False
        return self.note

    def release(self) -> None:
        self._move(LeaseEvent.RELEASED)

    def lapse(self) -> None:
        self._move(LeaseEvent.LAPSED)

    def _move(self, event: LeaseEvent) -> None:
        self._life.move(event, facts=f"fetch {self.fetch_id}, attempt {self.attempt}")
