"""A fetch under way: its states, its ticket, and what was measured on the way."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.plan import Plan
from kvtransfer.sink.fetch import Fetch, FetchStage
from kvtransfer.sink.link import Link
from protocol.errors import LayoutMismatch
from protocol.ids import BlockHash
from protocol.messages import Ticket


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AskedPrefix:
    """What a source is asked to lend of its prefix cache, and where it goes."""

    seed: BlockHash
    """Where the hash chain of the tokens begins."""
    token_ids_T: NDArray[np.uint32]
    """Whole blocks of them, from token 0."""
    hashes: tuple[BlockHash, ...]
    """Of each of those blocks."""
    first_block: int
    """The first that is wanted."""
    slots_S: NDArray[np.uint32]
    """Blocks of our pool, of that one and those after it."""


@dataclass(slots=True, eq=False)
class RunningFetch:
    """One that has not ended, from `Sink.fetch` on."""

    fetch: Fetch
    ticket: Ticket
    """With NO_LEASE until its source lends something."""
    plan: Plan | LayoutMismatch
    """From the source's layout to ours, or why there is none."""
    on_end: Callable[[FetchEnd], None]
    started_s: float
    deadline_s: float
    prefix: AskedPrefix | None = None
    """What is asked for where there was no ticket."""
    heads: range | None = None
    """Those to fetch of our layout's; None: all."""
    link: Link | None = None
    written_s: float = 0.0
    """When the source was told that everything is written, on our clock."""
    num_bytes: int = 0
    """Verified so far."""
    first_s: float = 0.0
    """When the first of them were, on our clock."""
    flow_s: float = 0.0
    """Seconds in which bytes of it flowed."""

    def outcome(self, *, now_s: float) -> FetchEnd:
        """What its end is, now that its states have ended."""
        fetch, link = self.fetch, self.link
        quarantined = tuple(fetch.slots_S[fetch.writing_S].tolist())
        if fetch.stage is FetchStage.FAILED:
            assert fetch.error is not None
            # A fresh one: a traceback would keep views of the pool alive as long as its reader.
            error = type(fetch.error)(str(fetch.error))
            return Lost(error, landed=fetch.verified, quarantined=quarantined)
        if fetch.stage is FetchStage.ABORTED:
            return Aborted(fetch.reason, landed=fetch.verified, quarantined=quarantined)
        assert link is not None and link.stream is not None and fetch.note is not None
        return Landed(
            note=fetch.note, transport=link.stream.transport, transport_why=link.why,
            num_blocks=fetch.num_slots, num_bytes=self.num_bytes,
            fetch_s=now_s - self.started_s, flow_s=self.flow_s,
            first_s=(self.first_s or now_s) - self.started_s,
            exposed_s=now_s - max(self.started_s, self.written_s),
        )  # fmt: skip
