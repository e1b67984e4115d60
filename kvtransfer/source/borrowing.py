"""What sinks ask a source to lend of its prefix cache, until the owner of the cache has answered.

On the source's thread. Knows neither leases nor blocks.
"""

import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final, NewType

from kvtransfer.messages import NO_LEASE, Borrow, FetchId, Lent
from kvtransfer.source.chunks import unpack_u4
from kvtransfer.source.lease import FetchRefused
from kvtransfer.source.sinks import ConnectedSink
from protocol.ids import BlockHash

log = logging.getLogger(__name__)

MAX_ASKED: Final = 256
MAX_ASKED_TOKENS: Final = 1 << 22
"""Of all sinks, not answered yet: the cache's owner answers between two steps. They take 16 MB."""
BorrowId = NewType("BorrowId", int)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AskedLoan:
    """A prefix that a sink asks for. To be answered by `Source.lend` or `Source.refuse_loan`."""

    id: BorrowId
    seed: BlockHash
    """Where the hash chain of the tokens begins."""
    token_ids: "array[int]"


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    sink: ConnectedSink
    fetch: FetchId
    num_tokens: int


class Borrowing:
    """Those of one source. `ask` hands one to the owner of the cache, and must not block; None:
    nothing is lent."""

    def __init__(self, ask: Callable[[AskedLoan], None] | None, *, compat: str) -> None:
        self._ask = ask
        self._compat = compat
        self._asked: dict[BorrowId, _Asked] = {}
        """Not answered yet."""
        self._ids = count(1)

    def ask_owner(self, sink: ConnectedSink, message: Borrow) -> Lent | None:
        """Ask the owner of the cache; an answer if there is one at once, that nothing is lent."""
        try:
            asked = self._checked(message)
        except FetchRefused as error:
            return nothing_lent(FetchId(message.fetch), str(error))
        assert self._ask is not None
        self._asked[asked.id] = _Asked(sink, FetchId(message.fetch), len(asked.token_ids))
        try:
            self._ask(asked)
        except Exception:
            log.exception("the owner of the prefix cache failed when it was asked")
            del self._asked[asked.id]
            return nothing_lent(FetchId(message.fetch), "the source cannot look")
        return None

    def pop_asked(self, borrow: BorrowId) -> tuple[ConnectedSink, FetchId] | None:
        """Who asked; None when it is gone, or has its answer."""
        asked = self._asked.pop(borrow, None)
        return None if asked is None else (asked.sink, asked.fetch)

    def forget_sink(self, sink: ConnectedSink) -> None:
        """It is gone."""
        self._asked = {b: asked for b, asked in self._asked.items() if asked.sink is not sink}

    def _checked(self, message: Borrow) -> AskedLoan:
        """Raises FetchRefused."""
        if self._ask is None:
            raise FetchRefused("the source lends nothing of its prefix cache")
        if message.compat != self._compat:
            raise FetchRefused("the fetcher's model is another")
        num_tokens = sum(asked.num_tokens for asked in self._asked.values())
        if len(self._asked) >= MAX_ASKED or num_tokens >= MAX_ASKED_TOKENS:
            raise FetchRefused(f"{len(self._asked)} wait for an answer already")
        token_ids = array("I", unpack_u4(message.token_ids).tobytes())
        seed = BlockHash(message.seed)
        return AskedLoan(id=BorrowId(next(self._ids)), seed=seed, token_ids=token_ids)


def nothing_lent(fetch: FetchId, reason: str) -> Lent:
    return Lent(fetch=fetch, lease=NO_LEASE, num_tokens=0, reason=reason[:2_000])
