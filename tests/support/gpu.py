"""Whether this machine has what the GPU tests need, and why not."""

import os
from functools import cache
from pathlib import Path

import pytest
from support.fake_collectives import FakeCollectives
from support.fake_driver import FakeDriver

from kvtransfer.device.collectives import Collectives
from kvtransfer.device.driver import Driver
from protocol.errors import TransferError
from tools.python_path import python_path


@cache
def why_no_gpu() -> str:
    """Empty when there is a GPU."""
    from kvtransfer.device.cuda import CudaDriver

    try:
        CudaDriver()
    except TransferError as error:
        return str(error)
    return ""


@cache
def why_no_nccl() -> str:
    """Empty when there are a GPU and an NCCL that two ranks on it can use."""
    if why := why_no_gpu():
        return why
    from kvtransfer.device.cuda import CudaDriver
    from kvtransfer.device.libnccl import Nccl

    driver = CudaDriver()
    try:
        return Nccl(driver.bind).why_not(ours=driver.device, theirs=driver.device)
    except TransferError as error:
        return str(error)


def driver_for(kind: str) -> Driver:
    """A driver of this kind; skips where it cannot be."""
    if kind == "fake":
        return FakeDriver()
    if why := why_no_gpu():
        pytest.skip(why)
    from kvtransfer.device.cuda import CudaDriver

    return CudaDriver()


def collectives_for(driver: Driver) -> Collectives:
    """The library that goes with a driver; skips where it cannot be."""
    if isinstance(driver, FakeDriver):
        return FakeCollectives(driver)
    if why := why_no_nccl():
        pytest.skip(why)
    from kvtransfer.device.cuda import CudaDriver
    from kvtransfer.device.libnccl import Nccl

    assert isinstance(driver, CudaDriver)
    return Nccl(driver.bind, max_ctas=2)


ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": python_path(ROOT, ROOT / "tests")}
"""Of a process that runs a module of ours or of the tests'."""
DRIVERS = ["fake", pytest.param("cuda", marks=pytest.mark.gpu)]
"""For the suites that hold for both."""
