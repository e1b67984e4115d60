"""Another process that maps an exported span, sums it, and writes its last word.

    python -m support.device_process KIND DEVICE NUM_BYTES HANDLE_HEX FD

Prints the sum of the whole span. Used by the contract suite of device drivers.
"""

import sys
import time

import numpy as np

from kvtransfer.device.driver import Driver
from kvtransfer.device.table import table
from kvtransfer.plan import Ranges

_WITHIN_S = 30.0


def driver_of(kind: str) -> Driver:
    if kind == "fake":
        from support.fake_driver import FakeDriver

        return FakeDriver()
    from kvtransfer.device.cuda import CudaDriver

    return CudaDriver()


def main() -> None:
    kind, device, num, handle, fd = sys.argv[1:]
    driver, num_bytes = driver_of(kind), int(num)
    span = driver.open(bytes.fromhex(handle), int(fd), num_bytes=num_bytes, device=device)
    whole = Ranges(np.array([0]), np.array([num_bytes]), np.array([0, 1]))
    sums = driver.sum(driver.stream(), source=span, table_5R=table(whole), num_pieces=1)
    deadline_s = time.monotonic() + _WITHIN_S
    while not sums.happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    print(int(sums.take_sums()[0]))
    driver.write(span, num_bytes - 8, b"was here")
    driver.read(span, 0, 8)  # the write has happened too
    driver.close(span)


if __name__ == "__main__":
    main()
