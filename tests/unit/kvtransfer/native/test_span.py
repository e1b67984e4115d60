import numpy as np
import pytest

from kvtransfer.native.copy import Span
from kvtransfer.plan import Ranges

HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 101), (1, 100), (101, 0), (-1, 1), (0, -1), (HUGE, 1), (1, HUGE), (HUGE, HUGE), (50, 51)],
)
def test_a_range_that_is_not_all_inside_is_refused(offset: int, size: int) -> None:
    """Also where its end is no number of 64 bits."""
    ranges = Ranges(np.array([0, offset]), np.array([100, size]), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=f"range {offset}\\+{size} of a span of 100 bytes"):
        Span(0, 100).check(ranges)


@pytest.mark.parametrize(("offset", "size"), [(0, 100), (100, 0), (99, 1), (0, 0)])
def test_a_range_may_end_where_the_span_does(offset: int, size: int) -> None:
    Span(0, 100).check(Ranges(np.array([offset]), np.array([size]), np.array([0, 1])))
