"""One block fetched from a peer, to see whether KV can come from there at all.

The source lends a block of no contents, and its bytes are verified as any others; both ends give
their block back. Held on the engine's thread, ended on the sink's.
"""

from functools import partial
from itertools import count
from typing import assert_never

from engine.commands import SpareToHold
from engine.kvcache.loans import LoanId
from engine.loop import Engine
from kvtransfer.endings import Aborted, FetchEnd, Landed, Lost
from kvtransfer.sink.sink import Sink
from protocol.errors import CapacityError, NotLent
from protocol.messages import PrefixSource
from worker.reported.canary_end import CanaryEnd, CanaryOutcome, OnCanaryEnd
from worker.transfers.canary_seed import CANARY
from worker.transfers.quarantine import Quarantine


class CanaryFetches:
    """Those of one worker: a `worker.reported.canary_end.CanarySource`."""

    def __init__(
        self,
        *,
        sink: Sink,
        engine: Engine,
        block_tokens: int,
        quarantine: Quarantine,
    ) -> None:
        self._sink = sink
        self._engine = engine
        self._block_tokens = block_tokens
        self._quarantine = quarantine
        self._loans = count(-1, -1)
        """Of blocks that this worker lends itself: those that peers ask for are positive."""

    @property
    def can_fetch(self) -> bool:
        """As of `CanarySource`."""
        return self._engine.can_pull

    def fetch_block(self, source: PrefixSource, *, within_s: float, on_end: OnCanaryEnd) -> None:
        """`on_end` is told once, on a thread of the engine or the sink."""
        loan = LoanId(next(self._loans))
        fetch = partial(self._fetch, source, loan, within_s, on_end)
        self._engine.hold_spare(SpareToHold(loan=loan, tell=fetch))

    def _fetch(
        self, source: PrefixSource, loan: LoanId, within_s: float, on_end: OnCanaryEnd,
        block: int | None,
    ) -> None:  # fmt: skip
        if block is None:
            on_end(CanaryEnd(outcome="skipped", why="no block to spare"))
            return
        try:
            self._sink.pull(
                source, seed=CANARY, token_ids=[0] * self._block_tokens, hashes=[CANARY],
                first_block=0, block_ids=[block], deadline_s=within_s,
                on_end=partial(self._ended, loan, block, on_end),
            )  # fmt: skip
        except (CapacityError, ValueError) as error:
            self._engine.end_loan(loan)
            on_end(CanaryEnd(outcome="skipped", why=str(error)))

    def _ended(self, loan: LoanId, block: int, on_end: OnCanaryEnd, end: FetchEnd) -> None:
        """Nobody writes into the block any more, unless the end quarantines it."""
        give_back = partial(self._engine.end_loan, loan)
        if not isinstance(end, Landed) and block in end.quarantined:
            self._quarantine.hold_until_quiet(block, give_back)
        else:
            give_back()
        outcome, why = _told(end)
        on_end(CanaryEnd(outcome=outcome, why=why))


def _told(end: FetchEnd) -> tuple[CanaryOutcome, str]:
    match end:
        case Landed():
            return "landed", end.transport
        case Lost(NotLent() as error):
            return "declined", str(error)
        case Lost(error):
            return "failed", f"{type(error).__name__}: {error}"
        case Aborted(reason):
            return "failed", reason
        case _:
            assert_never(end)
