"""Which data planes there are, and which of them can move the blocks of which pool.

The orders are those of preference: bytes that stay on a device first, then those that stay on a
host.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from kvtransfer.memory.device_pool import DeviceMemory
from kvtransfer.memory.host_pool import BlockMemory
from kvtransfer.memory.pool import Pool
from kvtransfer.messages import StreamHello
from kvtransfer.native import copy as native
from kvtransfer.transport_names import DEVICE_TRANSPORTS, HOST_TRANSPORTS
from kvtransfer.transports import memory
from kvtransfer.transports.base import Listener, Unreachable
from kvtransfer.transports.cuda_ipc import plane as cuda_ipc
from kvtransfer.transports.dial import Dial
from kvtransfer.transports.nccl import plane as nccl
from kvtransfer.transports.shm import plane as shm
from kvtransfer.transports.shm.helper import HelpCopy
from kvtransfer.transports.tcp import plane as tcp
from kvtransfer.transports.ucx import plane as ucx
from protocol.ids import Epoch

KNOWN: Final = ("memory", *DEVICE_TRANSPORTS, *HOST_TRANSPORTS)


def of_pool(pool: Pool) -> tuple[str, ...]:
    """Those that can move this pool's blocks, the best first."""
    return DEVICE_TRANSPORTS if isinstance(pool, DeviceMemory) else HOST_TRANSPORTS


def check(transports: Sequence[str]) -> None:
    """Raise ValueError for a name that is not known, or none at all."""
    if set(transports) - set(KNOWN) or not transports:
        raise ValueError(f"transports: {list(transports)}; known are {', '.join(KNOWN)}")


def prepare(transports: Sequence[str]) -> None:
    """Load what takes long, before a stream has to wait for it: the C kernels take the compiler
    0.8 s, once a machine."""
    native.kernels()
    if ucx.NAME in transports:
        with suppress(Unreachable):  # `dial` says so if it comes to that
            ucx.prepare()


def check_here(transport: str) -> None:
    """Raise Unreachable for a plane of which this process can make no use."""
    if transport == ucx.NAME and (why := ucx.why_not()):
        raise Unreachable(why)


def listen(transport: str, pool: Pool, *, host: str, epoch: Epoch, help_copy: HelpCopy) -> Listener:
    """A source's listener. Raises Unreachable where this plane cannot move these blocks,
    TransferError or OSError when it cannot listen."""
    match transport:
        case "cuda_ipc":
            return cuda_ipc.CudaIpcListener(_on_device(pool), epoch=epoch)
        case "nccl":
            return nccl.NcclListener(_on_device(pool), host)
        case "memory":
            return memory.MemoryListener(_in_host(pool), epoch=epoch)
        case "shm":
            return shm.ShmListener(_in_host(pool), epoch=epoch, help_copy=help_copy)
        case "ucx":
            return ucx.UcxListener(_in_host(pool), host)
        case "tcp":
            return tcp.TcpListener(_in_host(pool), host)
        case _:
            raise AssertionError(f"no transport is called {transport}")


def dial(transport: str, address: str, hello: StreamHello, pool: Pool, *, tcp_lanes: int) -> Dial:
    """A stream on its way to a source, to fetch into `pool`. Raises Unreachable."""
    match transport:
        case "cuda_ipc":
            return cuda_ipc.dial(address, hello, _on_device(pool))
        case "nccl":
            return nccl.dial(address, hello, _on_device(pool))
        case "memory":
            return memory.dial(hello, _in_host(pool))
        case "shm":
            return shm.dial(address, hello, _in_host(pool))
        case "ucx":
            return ucx.dial(address, hello, _in_host(pool))
        case "tcp":
            return tcp.dial(address, hello, _in_host(pool), num_lanes=tcp_lanes)
        case _:
            raise AssertionError(f"no transport is called {transport}")


def _in_host(pool: Pool) -> BlockMemory:
    if not isinstance(pool, BlockMemory):
        raise Unreachable("the pool is on a device")
    return pool


def _on_device(pool: Pool) -> DeviceMemory:
    if not isinstance(pool, DeviceMemory):
        raise Unreachable("the pool is in host memory")
    return pool
