"""The names of the data planes, and the settings that list them. Imports nothing heavy, so that
settings can be read, and refused, before any plane is loaded."""

from typing import Final

HOST_TRANSPORTS: Final = ("shm", "ucx", "tcp")
"""Those that move blocks in host memory, the best first."""
DEVICE_TRANSPORTS: Final = ("cuda_ipc", "nccl")
"""Those that move blocks on a device, the best first."""


def in_host(listed: str) -> str:
    """`listed`, names separated by commas; ValueError unless each is one of HOST_TRANSPORTS, and
    comes once."""
    names = listed.split(",")
    known = ", ".join(HOST_TRANSPORTS)
    if any(name not in HOST_TRANSPORTS for name in names):
        raise ValueError(f"must be names separated by commas, of {known}")
    if len(set(names)) < len(names):
        raise ValueError("names one transport twice")
    return listed
