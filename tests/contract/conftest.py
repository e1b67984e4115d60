"""One lender and one borrower over each data plane that two processes can share."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from support.fetching import TimedEnds
from support.nursery import Nursery
from support.transfer import Borrower, Lender
from support.transfer_process import LAYOUT, LEASE_BLOCKS, NUM_LEASES


@pytest.fixture(params=["shm", "tcp"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ends() -> TimedEnds:
    return TimedEnds()


@pytest.fixture
def lender(ends: TimedEnds) -> Iterator[Lender]:
    with closing(Lender(ends=ends)) as lender:
        yield lender


@pytest.fixture
def borrower(transport: str) -> Iterator[Borrower]:
    with closing(Borrower(transports=(transport,), allow_fallback=False)) as borrower:
        yield borrower


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with closing(Nursery()) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def truth() -> Iterator[Lender]:
    """What every source of processes that are killed holds."""
    with closing(Lender(layout=LAYOUT, num_blocks=NUM_LEASES * LEASE_BLOCKS)) as truth:
        yield truth
