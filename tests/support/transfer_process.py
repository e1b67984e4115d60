"""One end of kvtransfer as a process of its own, for tests that kill or stop it.

Played by children of `support.nursery`. A source says its tickets, one a line, has everything
written and waits; a sink hears tickets, fetches each whole, and says a line for every start and
end. Both end when nobody speaks to them any more.
"""

from base64 import b64decode, b64encode

import msgspec
from support.fetching import TimedOutcome, fetch
from support.nursery import Part, Words
from support.prefixes import Shelf, prefix_of, pull
from support.scribbler import be_scribbler
from support.transfer import Borrower, Lender

from protocol.layout import KvLayout
from protocol.messages import PrefixSource, Ticket

LAYOUT = KvLayout(num_layers=4, num_kv_heads=4, head_dim=32, block_tokens=4, dtype="float32")
"""16 KiB a block."""
LEASE_BLOCKS = 128
NUM_LEASES = 10


def pack(ticket: Ticket) -> str:
    return b64encode(msgspec.msgpack.encode(ticket)).decode()


def unpack(line: str) -> Ticket:
    return msgspec.msgpack.decode(b64decode(line), type=Ticket)


def pack_prefix(source: PrefixSource) -> str:
    return b64encode(msgspec.msgpack.encode(source)).decode()


def unpack_prefix(line: str) -> PrefixSource:
    return msgspec.msgpack.decode(b64decode(line), type=PrefixSource)


def pull_whole(borrower: Borrower, source: PrefixSource, lease: int) -> TimedOutcome:
    """All blocks of the n-th lease, from a prefix cache."""
    blocks = whole(lease)
    first_token = blocks.start * LAYOUT.block_tokens
    return pull(borrower, source, blocks, first_token=first_token, deadline_s=60.0)


def whole(lease: int) -> range:
    """The pool blocks of the n-th lease."""
    return range(lease * LEASE_BLOCKS, (lease + 1) * LEASE_BLOCKS)


def be_source(words: Words, arguments: list[str]) -> None:
    """`ttl_s lease...`"""
    lender = Lender(
        layout=LAYOUT, num_blocks=NUM_LEASES * LEASE_BLOCKS, lease_ttl_s=float(arguments[0]),
        help_copy="always",
    )  # fmt: skip
    for lease in map(int, arguments[1:]):
        ticket = lender.lend(whole(lease))
        lender.write_all(ticket, note=bytes([lease]))
        words.say(pack(ticket))
    words.hear()
    lender.close()


def be_unfinished_source(words: Words, arguments: list[str]) -> None:
    """`ttl_s`: one lease, half of it written."""
    lender = Lender(layout=LAYOUT, num_blocks=LEASE_BLOCKS, lease_ttl_s=float(arguments[0]))
    ticket = lender.lend(whole(0))
    lender.source.publish(ticket.lease, ticket.num_tokens // 2)
    words.say(pack(ticket))
    words.hear()
    lender.close()


def be_sink(words: Words, arguments: list[str]) -> None:
    """`ttl_s transport lease...`"""
    borrower = Borrower(
        layout=LAYOUT, num_blocks=NUM_LEASES * LEASE_BLOCKS, transports=(arguments[1],),
        lease_ttl_s=float(arguments[0]),
    )  # fmt: skip
    words.say("ready")
    outcomes = []
    for lease in map(int, arguments[2:]):
        outcomes.append(fetch(borrower, unpack(words.hear()), whole(lease), deadline_s=60.0))
        words.say("fetching")
    for outcome in outcomes:
        words.say(type(outcome.end).__name__)
    words.hear()
    borrower.close()


def be_lending_source(words: Words, arguments: list[str]) -> None:
    """Lends of its prefix cache what tokens name (`support.prefixes.Shelf`)."""
    num_blocks = NUM_LEASES * LEASE_BLOCKS
    lender = Lender(
        layout=LAYOUT, num_blocks=num_blocks, lease_ttl_s=60.0, help_copy="always",
        on_borrow=Shelf(blocks=None, num_blocks=num_blocks).hear,
    )  # fmt: skip
    words.say(pack_prefix(prefix_of(lender)))
    words.hear()
    lender.close()


def be_pulling_sink(words: Words, arguments: list[str]) -> None:
    """`transport lease...`: pulls the blocks of these leases from the source that it hears of."""
    borrower = Borrower(
        layout=LAYOUT, num_blocks=NUM_LEASES * LEASE_BLOCKS, transports=(arguments[0],),
        lease_ttl_s=60.0,
    )  # fmt: skip
    words.say("ready")
    source = unpack_prefix(words.hear())
    outcomes = [pull_whole(borrower, source, lease) for lease in map(int, arguments[1:])]
    for outcome in outcomes:
        words.say(type(outcome.end).__name__)
    words.hear()
    borrower.close()


PARTS: dict[str, Part] = {
    "source": be_source, "unfinished source": be_unfinished_source, "sink": be_sink,
    "scribbler": be_scribbler, "lending source": be_lending_source,
    "pulling sink": be_pulling_sink,
}  # fmt: skip
