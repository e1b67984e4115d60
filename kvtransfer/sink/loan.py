"""A fetch of a prefix that its source has cached: what it asks to be lent, and then fetches.

From the lease on it is a fetch as any other.
"""

import msgspec
import numpy as np

from kvtransfer.chunk import describe_pieces
from kvtransfer.messages import NO_LEASE, Borrow, Lent
from kvtransfer.plan import Plan
from kvtransfer.sink.running_fetch import RunningFetch
from protocol.errors import CorruptBlock, NotLent, WireError
from protocol.layout import Layout


def borrow_message(running: RunningFetch) -> Borrow:
    """What its source is asked to lend."""
    prefix = running.prefix
    assert prefix is not None
    return Borrow(
        fetch=running.fetch.id, compat=running.ticket.compat, seed=prefix.seed,
        token_ids=prefix.token_ids_T.astype("<u4").tobytes(),
    )  # fmt: skip


def accept_loan(running: RunningFetch, lent: Lent, *, layout: Layout) -> None:
    """From here on it fetches what is lent, as far as it is wanted. Raises NotLent when that is
    nothing, CorruptBlock when it is of other tokens, WireError for more than was asked for."""
    prefix, plan = running.prefix, running.plan
    assert prefix is not None and isinstance(plan, Plan)
    if lent.lease == NO_LEASE:
        raise NotLent(lent.reason or "the source lends nothing")
    num_blocks, rest = divmod(lent.num_tokens, layout.block_tokens)
    if rest or lent.num_tokens > len(prefix.token_ids_T):
        raise WireError(f"{lent.num_tokens} tokens are lent of {len(prefix.token_ids_T)} asked for")
    if num_blocks and lent.last != prefix.hashes[num_blocks - 1]:
        raise CorruptBlock("the source lends blocks of other tokens")
    num_wanted = num_blocks - prefix.first_block
    if num_wanted <= 0:
        raise NotLent(f"the source has {num_blocks} blocks of it, all of them here already")
    indices_S = np.arange(prefix.first_block, num_blocks, dtype=np.uint32)
    pieces_S = describe_pieces(
        plan, indices_S=indices_S, slots_S=prefix.slots_S[:num_wanted], num_tokens=lent.num_tokens
    )
    running.ticket = msgspec.structs.replace(
        running.ticket, lease=lent.lease, num_tokens=lent.num_tokens
    )
    running.fetch.accept_loan(lease_id=lent.lease, pieces_S=pieces_S)
