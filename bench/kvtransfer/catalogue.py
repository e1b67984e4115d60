"""Who is measured: every contestant with its variants, and what has to be installed for it."""

import ctypes.util
import importlib.util
from dataclasses import dataclass
from typing import Final, Literal

Plane = Literal["host", "tcp"]
"""Host: whatever it does between two processes of a host. Tcp: bytes travel over TCP alone."""
Family = Literal["baton", "nixl", "ucx", "mooncake", "gloo", "zmq", "limit"]
Measure = Literal["bulk", "publish", "latency"]
"""Bulk: many blocks that are written and published. Publish: the same, counted from before they
are published. Latency: one block of 32 KiB that a receiver waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    name: str
    family: Family
    plane: Plane
    module: str
    """Under `bench.kvtransfer`, with a `source` and a `sink` of a `Place`."""
    option: str
    environment: tuple[tuple[str, str], ...] = ()
    measures: tuple[Measure, ...] = ("bulk", "latency")


_UCX_TCP: Final = (("UCX_TLS", "tcp"),)

OURS: Final = (
    Mover(name="baton shm, both copy", family="baton", plane="host", module="ours",
          option="both", measures=("bulk", "publish")),
    Mover(name="baton shm, one copies", family="baton", plane="host", module="ours",
          option="one", measures=("bulk", "publish")),
    Mover(name="baton shm", family="baton", plane="host", module="ours",
          option="sleep", measures=("latency",)),
    Mover(name="baton shm, spinning", family="baton", plane="host", module="ours",
          option="spin", measures=("latency",)),
    Mover(name="baton tcp", family="baton", plane="tcp", module="ours", option="tcp",
          measures=("bulk", "publish", "latency")),
)  # fmt: skip


def _nixl(operation: str, *, progress: str, errors: str = "peer", tcp: bool = False) -> Mover:
    words = [f"nixl {operation}{' tcp' if tcp else ''}"]
    words += ["no progress thread"] if progress == "poll" else []
    words += ["no error handling"] if errors == "none" else []
    return Mover(
        name=", ".join(words), family="nixl", plane="tcp" if tcp else "host", module="nixl_peer",
        option=f"{operation} {progress} {errors}", environment=_UCX_TCP if tcp else (),
    )  # fmt: skip


PEERS: Final = (
    _nixl("write", progress="thread"),
    _nixl("write", progress="poll"),
    _nixl("write", progress="poll", errors="none"),
    _nixl("read", progress="thread"),
    _nixl("read", progress="poll"),
    _nixl("read", progress="poll", errors="none"),
    _nixl("write", progress="thread", tcp=True),
    _nixl("write", progress="poll", tcp=True),
    _nixl("read", progress="thread", tcp=True),
    _nixl("read", progress="poll", tcp=True),
    Mover(name="ucx", family="ucx", plane="host", module="ucx_peer", option="poll"),
    Mover(name="ucx, blocking", family="ucx", plane="host", module="ucx_peer", option="block"),
    Mover(name="ucx tcp", family="ucx", plane="tcp", module="ucx_peer", option="poll",
          environment=_UCX_TCP),
    Mover(name="ucx tcp, blocking", family="ucx", plane="tcp", module="ucx_peer", option="block",
          environment=_UCX_TCP),
    Mover(name="mooncake write tcp", family="mooncake", plane="tcp", module="mooncake_peer",
          option="write"),
    Mover(name="mooncake read tcp", family="mooncake", plane="tcp", module="mooncake_peer",
          option="read"),
    Mover(name="gloo", family="gloo", plane="tcp", module="gloo_peer", option=""),
    Mover(name="zmq ipc", family="zmq", plane="host", module="zmq_peer", option="ipc"),
    Mover(name="zmq tcp", family="zmq", plane="tcp", module="zmq_peer", option="tcp"),
)  # fmt: skip

LIMITS: Final = (
    Mover(name="bare socket and memcpy", family="limit", plane="host", module="bare",
          option="socket", measures=("latency",)),
    Mover(name="bare flag and memcpy", family="limit", plane="host", module="bare",
          option="flag", measures=("latency",)),
)  # fmt: skip

_NEEDS: Final[dict[Family, str]] = {
    "baton": "kvtransfer",
    "nixl": "nixl",
    "ucx": "ucxx",
    "mooncake": "mooncake",
    "gloo": "torch",
    "zmq": "zmq",
    "limit": "numpy",
}


def absent(mover: Mover) -> str:
    """Why it cannot be measured here and what to do, or ""."""
    package = _NEEDS[mover.family]
    if not importlib.util.find_spec(package):
        return f"absent: no {package} in this environment (make bench-kvtransfer installs it)"
    if mover.family == "mooncake" and not ctypes.util.find_library("ibverbs"):
        return "absent: mooncake needs libibverbs.so.1 (apt-get install libibverbs1)"
    return ""
