"""The table of data planes, and which of them can move the blocks of which pool.

The orders are those of preference: bytes stay on a device, else on a host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.memory.pool import Pool
from kvtransfer.native.library import kernels
from kvtransfer.transport_names import DEVICE_TRANSPORTS, HOST_TRANSPORTS
from kvtransfer.transports.base import DialOptions, Listener, ListenOptions, Unreachable
from kvtransfer.transports.cuda_ipc import plane as cuda_ipc
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.nccl import plane as nccl
from kvtransfer.transports.shm import plane as shm
from kvtransfer.transports.tcp import plane as tcp
from kvtransfer.transports.ucx import plane as ucx

PoolT = TypeVar("PoolT", bound=Pool)


@dataclass(frozen=True, slots=True)
class DataPlane(Generic[PoolT]):
    """What sources and sinks need of one plane."""

    pools: tuple[type[PoolT], ...]
    """Those whose blocks it moves."""
    listen: Callable[[PoolT, ListenOptions], Listener]
    """Raises Unreachable where it cannot move these blocks, TransferError or OSError when it cannot
    listen."""
    dial: Callable[[PoolT, DialOptions], Dial]
    """A stream on its way to a source, to fetch into the pool. Raises Unreachable."""
    prepare: Callable[[], None] = lambda: None
    """Loads what takes long."""
    why_not: Callable[[], str] = lambda: ""
    """Why this process can make no use of it; empty when it can."""

    def check_pool(self, pool: Pool) -> PoolT:
        """The pool, as its own type. Raises Unreachable."""
        if not isinstance(pool, self.pools):
            there = "on a device" if isinstance(pool, DeviceMemory) else "in host memory"
            raise Unreachable(f"the pool is {there}")
        return pool


_ON_DEVICE: Final[dict[str, DataPlane[DeviceMemory]]] = {
    "cuda_ipc": DataPlane((DeviceMemory,), cuda_ipc.CudaIpcListener, cuda_ipc.dial),
    "nccl": DataPlane((DeviceMemory,), nccl.NcclListener, nccl.dial),
}
_ANYWHERE: Final[dict[str, DataPlane[BlockMemory | DeviceMemory]]] = {
    "shm": DataPlane((BlockMemory, DeviceMemory), shm.ShmListener, shm.dial),
    "tcp": DataPlane((BlockMemory, DeviceMemory), tcp.TcpListener, tcp.dial),
}
_IN_HOST: Final[dict[str, DataPlane[BlockMemory]]] = {
    "ucx": DataPlane(
        (BlockMemory,), ucx.UcxListener, ucx.dial, prepare=ucx.prepare, why_not=ucx.why_not
    ),
}
PLANES: Final[dict[str, DataPlane[Any]]] = {**_ON_DEVICE, **_ANYWHERE, **_IN_HOST}

PORTS: Final = ("tcp", "ucx", "nccl")
"""Planes that listen on ports: on the first, second and third after that of a source's control."""


def port_of(transport: str, control_port: int) -> int:
    """Where a plane listens; 0: anywhere, or on no port at all."""
    if not control_port or transport not in PORTS:
        return 0
    return control_port + 1 + PORTS.index(transport)


def of_pool(pool: Pool) -> tuple[str, ...]:
    """Those that can move this pool's blocks, the best first."""
    return DEVICE_TRANSPORTS if isinstance(pool, DeviceMemory) else HOST_TRANSPORTS


def check(transports: Sequence[str]) -> None:
    """Raise ValueError for a name that is not in the table, or none at all."""
    if not transports or set(transports) - PLANES.keys():
        raise ValueError(f"transports: {list(transports)}; known are {', '.join(PLANES)}")


def prepare(transports: Sequence[str]) -> None:
    """Load what no stream should wait for: compiling the C kernels takes 0.8 s, once a machine."""
    kernels()
    for name in transports:
        PLANES[name].prepare()


def check_here(transport: str) -> None:
    """Raise Unreachable for a plane of which this process can make no use."""
    if why := PLANES[transport].why_not():
        raise Unreachable(why)


def listen(transport: str, pool: Pool, options: ListenOptions) -> Listener:
    """A source's listener. Raises as `DataPlane.listen`."""
    plane = PLANES[transport]
    return plane.listen(plane.check_pool(pool), options)


def dial(transport: str, pool: Pool, options: DialOptions) -> Dial:
    """A stream on its way to a source, to fetch into `pool`. Raises Unreachable."""
    plane = PLANES[transport]
    return plane.dial(plane.check_pool(pool), options)
