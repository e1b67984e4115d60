"""The names of the data planes, and the settings that list them. Imports nothing heavy, so that
settings can be read, and refused, before any plane is loaded."""

from typing import Final

from protocol.errors import SettingsError

HOST_TRANSPORTS: Final = ("shm", "ucx", "tcp")
"""Those that move blocks in host memory, the best first."""
DIRECT_TRANSPORTS: Final = ("cuda_ipc", "nccl")
"""Those that move blocks from one device to another without a host's memory."""
DEVICE_TRANSPORTS: Final = (*DIRECT_TRANSPORTS, "shm", "tcp")
"""Those that move blocks on a device, the best first; the last two through host memory."""
DEFAULT_HOST: Final = ("shm", "tcp")


def listed(names: str) -> str:
    """`names` separated by commas, or none for the defaults; ValueError unless each is known and
    comes once, and one pool can be moved by all of them."""
    split = names.split(",") if names else []
    for known in (HOST_TRANSPORTS, DEVICE_TRANSPORTS):
        if set(split) <= set(known):
            if len(set(split)) < len(split):
                raise ValueError("names one transport twice")
            return names
    hosts, devices = ", ".join(HOST_TRANSPORTS), ", ".join(DEVICE_TRANSPORTS)
    raise ValueError(f"must be names separated by commas, all of {hosts} or all of {devices}")


def chosen(names: str, *, on_device: bool) -> tuple[str, ...]:
    """Those that a pool there is moved by: what was `listed`, or the defaults. Raises
    SettingsError for names that cannot move it."""
    if not names:
        return DEVICE_TRANSPORTS if on_device else DEFAULT_HOST
    able = DEVICE_TRANSPORTS if on_device else HOST_TRANSPORTS
    split = tuple(names.split(","))
    if not set(split) <= set(able):
        where = "on a GPU" if on_device else "in host memory"
        raise SettingsError(
            f"transports: {names!r}: the KV pool is {where}, where it moves by {', '.join(able)}; "
            "name those, or choose another device"
        )
    return split
