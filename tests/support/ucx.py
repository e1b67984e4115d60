"""Whether the tests of the ucx data plane can run here, and why not."""

import pytest

from kvtransfer.transports.ucx.session import why_not

needs_ucx = pytest.mark.skipif(bool(why_not()), reason=f"{why_not()} (make test-ucx)")
UCX = pytest.param("ucx", marks=needs_ucx)
