"""Thousands of transfers, a fifth broken off: what is held stays the same. `make soak`: a curve."""

from contextlib import closing

import pytest
from support.soak import ABORTED_SHARE, BREAKS, Soak

SOAK = pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(1500)])
WARM_UP = 1_000
GROWTH_MIB = 2.0
"""The source remembers how its last 1,024 leases ended; a leaked pool would be 0.1 MiB each."""


@pytest.mark.slow
@pytest.mark.parametrize("num_transfers", [SOAK])
def test_resident_memory_descriptors_threads_and_segments_stay_flat(num_transfers: int) -> None:
    with closing(Soak("long run")) as soak:
        samples = list(soak.run(num_transfers, sample_every=250))
        endings = soak.endings
    first, *later = [sample for sample in samples if sample.transfers >= WARM_UP]
    for sample in later:
        assert sample.held == first.held
        assert sample.resident_mib - first.resident_mib < GROWTH_MIB
    assert endings.total() == num_transfers
    assert set(endings) == {"landed", *BREAKS}
    assert 1 - endings["landed"] / num_transfers == pytest.approx(ABORTED_SHARE, abs=0.05)
