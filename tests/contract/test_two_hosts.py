"""Two hosts and a wire that is cut, lossy, slow or loses an end: both sides end, and nothing stays.

The hosts are network namespaces made and removed here. What a test waits for is bounded by the
lease's term, which is all that a silent wire leaves to go by.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from support import hosts as two_hosts
from support.census import back_to, settled
from support.eventually import eventually
from support.fetching import TimedEnds, TimedOutcome, fetch
from support.hosts import Hosts
from support.transfer import Borrower, Lender
from support.transfer_process import LAYOUT

from kvtransfer.endings import Landed, Lost
from protocol.errors import PeerLost, TransferError
from protocol.messages import Ticket

LEASE_TTL_S = 0.9
LONG_TTL_S = 6.0
MARGIN_S = 1.0
"""A turn, a loaded machine."""
FORGOTTEN_WITHIN_S = 10.0
"""A peer that acknowledges nothing is given up after 6 s."""
NUM_BLOCKS = 64

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(two_hosts.why_not()), reason=two_hosts.why_not() or "-"),
]


@pytest.fixture(params=["veth", "held"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Hosts]:
    with closing(Hosts(request.param)) as hosts:
        yield hosts


@pytest.fixture
def held() -> Iterator[Hosts]:
    with closing(Hosts("held")) as hosts:
        yield hosts


class Far:
    """A lender on host 0 and a borrower on host 1."""

    def __init__(self, hosts: Hosts, *, lease_ttl_s: float = LEASE_TTL_S) -> None:
        self.hosts = hosts
        self.lease_ttl_s = lease_ttl_s
        self.ends = TimedEnds()
        self.lender = self.new_lender()
        self.borrower = self.new_borrower()

    def new_lender(self) -> Lender:
        with self.hosts.inside(0):
            return Lender(
                layout=LAYOUT, num_blocks=NUM_BLOCKS, lease_ttl_s=self.lease_ttl_s,
                ends=self.ends, host=self.hosts.addresses[0],
            )  # fmt: skip

    def new_borrower(self) -> Borrower:
        with self.hosts.inside(1):
            return Borrower(layout=LAYOUT, num_blocks=NUM_BLOCKS, lease_ttl_s=self.lease_ttl_s)

    def begin(self) -> tuple[Ticket, TimedOutcome]:
        """A fetch of eight blocks, of which half are written and here."""
        self.borrower.memory.blocks[:] = bytes(len(self.borrower.memory.blocks))
        ticket = self.lender.lend(range(8))
        outcome = fetch(self.borrower, ticket, range(10, 18), deadline_s=60.0)
        self.lender.source.publish(ticket.lease, ticket.num_tokens // 2)
        eventually(lambda: self.holds(range(4)), what="the first half")
        return ticket, outcome

    def holds(self, indices: range) -> bool:
        ours, theirs = self.borrower.memory, self.lender.memory
        return all(ours.block(10 + index) == theirs.block(index) for index in indices)

    def lands(self) -> bool:
        """A new fetch goes through, with the right bytes."""
        ticket, outcome = self.begin()
        self.lender.write_all(ticket)
        return isinstance(outcome.end, Landed) and self.holds(range(8))

    def close(self) -> None:
        self.borrower.close()
        self.lender.close()


@contextmanager
def far(hosts: Hosts, *, lease_ttl_s: float = LEASE_TTL_S) -> Iterator[Far]:
    with closing(Far(hosts, lease_ttl_s=lease_ttl_s)) as pair:
        assert pair.lands()
        yield pair


def a_second_passes() -> None:
    """The term of a lease nobody renews."""
    with closing(Lender(lease_ttl_s=1.0, num_blocks=1)) as clock:
        assert clock.end_of(clock.lend([0]).lease).reason == "expired"


def error_of(outcome: TimedOutcome) -> TransferError:
    assert isinstance(outcome.end, Lost), outcome.end
    return outcome.end.error


def test_two_hosts_share_no_memory_and_say_so(hosts: Hosts) -> None:
    with far(hosts) as pair:
        ticket, outcome = pair.begin()
        pair.lender.write_all(ticket)
        assert isinstance(outcome.end, Landed) and outcome.end.transport == "tcp"
        assert "not shm" in outcome.end.transport_why


def test_a_partition_longer_than_the_lease_ends_both_sides_and_heals(hosts: Hosts) -> None:
    with far(hosts) as pair:
        at_rest = settled()
        ticket, outcome = pair.begin()
        hosts.cut()
        pair.lender.write_all(ticket)
        eventually(lambda: outcome.ended, LEASE_TTL_S + MARGIN_S)
        eventually(lambda: ticket.lease in pair.ends.told, LEASE_TTL_S + MARGIN_S)
        assert isinstance(error_of(outcome), PeerLost)
        assert pair.ends.told[ticket.lease].reason == "expired"
        assert pair.borrower.sink.num_fetches == pair.lender.source.num_leases == 0
        hosts.mend()
        assert pair.lands()
        back_to(at_rest, FORGOTTEN_WITHIN_S)
        assert not pair.ends.twice


def test_a_partition_shorter_than_the_lease_only_delays(hosts: Hosts) -> None:
    with far(hosts, lease_ttl_s=LONG_TTL_S) as pair:
        at_rest = settled()
        ticket, outcome = pair.begin()
        hosts.cut()
        pair.lender.write_all(ticket)
        a_second_passes()
        assert not outcome.ended and pair.lender.sent(ticket.lease) == 8
        hosts.mend()
        assert isinstance(outcome.end, Landed) and pair.holds(range(8))
        eventually(lambda: ticket.lease in pair.ends.told)
        assert pair.ends.told[ticket.lease].reason == "released"
        back_to(at_rest, FORGOTTEN_WITHIN_S)


def test_netem_loss_and_delay_only_delay() -> None:
    with closing(Hosts("veth")) as hosts:
        why = hosts.netem("loss", "3%", "delay", "10ms", "5ms", "duplicate", "1%")
        if why:
            pytest.skip(f"this kernel has no netem ({why}); the held wire shows the same below")
        with far(hosts, lease_ttl_s=LONG_TTL_S) as pair:
            assert all(pair.lands() for _ in range(10))


def test_loss_delay_repetition_and_reordering_only_delay(held: Hosts) -> None:
    with far(held, lease_ttl_s=LONG_TTL_S) as pair:
        at_rest = settled()
        held.harm.loss, held.harm.repeat = 0.03, 0.02
        held.harm.delay_s = (0.001, 0.015)
        assert all(pair.lands() for _ in range(10))
        held.harm.loss = 0.0
        back_to(at_rest, FORGOTTEN_WITHIN_S)


def test_a_wire_that_loses_most_ends_every_fetch_one_way_or_the_other(held: Hosts) -> None:
    with far(held) as pair:
        at_rest = settled()
        held.harm.loss = 0.5
        tickets = [pair.lender.lend(range(8 * n, 8 * n + 8)) for n in range(4)]
        outcomes = [
            fetch(pair.borrower, ticket, range(8 * n, 8 * n + 8), deadline_s=3.0)
            for n, ticket in enumerate(tickets)
        ]
        for ticket in tickets:
            pair.lender.write_all(ticket)
        for n, outcome in enumerate(outcomes):
            if isinstance(outcome.end, Landed):
                for block in range(8 * n, 8 * n + 8):
                    assert pair.borrower.memory.block(block) == pair.lender.memory.block(block)
        eventually(lambda: pair.lender.source.num_leases == 0, 3.0 + LEASE_TTL_S + MARGIN_S)
        held.harm.loss = 0.0
        assert pair.lands()
        back_to(at_rest, FORGOTTEN_WITHIN_S)


def test_a_sinks_host_that_vanishes_is_forgotten_whole(held: Hosts) -> None:
    """No FIN comes: the lease runs out, and the half-open connections go too."""
    with far(held) as pair:
        pair.borrower.close()
        at_rest = settled()
        pair.borrower = pair.new_borrower()
        ticket, _ = pair.begin()
        held.cut()
        pair.borrower.close()
        held.move(1, "10.77.0.9")
        held.mend()
        eventually(lambda: ticket.lease in pair.ends.told, LEASE_TTL_S + MARGIN_S)
        assert pair.ends.told[ticket.lease].reason == "expired"
        back_to(at_rest, FORGOTTEN_WITHIN_S)
        pair.borrower = pair.new_borrower()
        assert pair.lands()


def test_a_sources_host_that_vanishes_ends_its_fetches_in_time(hosts: Hosts) -> None:
    with far(hosts) as pair:
        _, outcome = pair.begin()
        hosts.cut()
        pair.lender.source.close()
        hosts.move(0, "10.77.0.8")
        hosts.mend()
        eventually(lambda: outcome.ended, LEASE_TTL_S + MARGIN_S)
        assert isinstance(error_of(outcome), PeerLost)
        pair.lender.memory.close()
        pair.lender = pair.new_lender()
        assert pair.lands()


def test_a_sink_that_changes_its_address_fetches_again_from_the_new_one(held: Hosts) -> None:
    with far(held) as pair:
        at_rest = settled()
        ticket, outcome = pair.begin()
        held.move(1, "10.77.0.9")
        pair.lender.write_all(ticket)
        eventually(lambda: outcome.ended, LEASE_TTL_S + MARGIN_S)
        eventually(lambda: ticket.lease in pair.ends.told, LEASE_TTL_S + MARGIN_S)
        assert pair.lands()
        back_to(at_rest, FORGOTTEN_WITHIN_S)
