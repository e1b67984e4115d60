"""One lender and one borrower over each data plane that two processes can share."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from support.fetching import TimedEnds
from support.transfer import Borrower, Lender


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
