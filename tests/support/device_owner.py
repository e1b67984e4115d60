"""Another process that owns device memory: fills it, hands it over, and waits to be killed.

    python -m support.device_owner KIND NUM_BYTES SEED FD

FD is a unix socket; over it go the handle, and the descriptor of the memory with it. Used by the
tests of what a mapping outlives.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from support.device_process import driver_of
from support.gpu import ENVIRONMENT

from kvtransfer.device.driver import Driver, Exported

_PART_BYTES = 1 << 20
WITHIN_S = 60.0


def content_of(seed: int) -> bytes:
    """What every MiB of the memory has."""
    return np.random.default_rng(seed).bytes(_PART_BYTES)


@dataclass(frozen=True, slots=True)
class Owner:
    process: subprocess.Popen[bytes]
    exported: Exported
    device: str

    def kill(self) -> None:
        """It is gone when this returns."""
        self.process.kill()
        self.process.wait()


@contextmanager
def device_owner(driver: Driver, *, num_bytes: int, seed: int) -> Iterator[Owner]:
    """A process with filled memory, on a device of the same kind."""
    ours, theirs = socket.socketpair()
    command = [
        sys.executable, "-m", "support.device_owner", driver.name, str(num_bytes), str(seed),
        str(theirs.fileno()),
    ]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, pass_fds=[theirs.fileno()])
    theirs.close()
    ours.settimeout(WITHIN_S)
    with ours, process:
        try:
            handle, fds, _, _ = socket.recv_fds(ours, 4096, 1)
            device, _, packed = handle.partition(b" ")
            yield Owner(process, Exported(handle=packed, fd=fds[0]), device.decode())
            os.close(fds[0])
        finally:
            process.kill()


def main() -> None:
    kind, num_bytes, seed, fd = sys.argv[1:]
    driver = driver_of(kind)
    span, content = driver.allocate(int(num_bytes)), content_of(int(seed))
    for at in range(0, int(num_bytes), len(content)):
        driver.write(span, at, content[: int(num_bytes) - at])
    driver.read(span, 0, 8)  # and the writes have happened
    exported = driver.export(span)
    with socket.socket(fileno=int(fd)) as sock:
        told = driver.device.encode() + b" " + exported.handle
        socket.send_fds(sock, [told], [exported.fd])
        time.sleep(WITHIN_S)


if __name__ == "__main__":
    main()
