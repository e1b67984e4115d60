"""Two hosts on one machine: network namespaces, and between them a wire the test can harm.

The wire is a veth pair, which `tc netem` harms where the kernel has it; or a *held* one: two TUN
devices whose packets a thread of ours carries, so that loss, delay, repetition and reordering
are real packets really treated so, on any kernel. Threads and sockets made `inside` a host
belong to it; nothing else of the process changes hosts.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_MAX_PACKET_BYTES = 65_536
_libc = ctypes.CDLL(None, use_errno=True)
_serial = count()
Wire = Literal["veth", "held"]


def why_not() -> str:
    """Why no hosts can be made here; empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "no ip and tc (iproute2) installed"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no /dev/net/tun"
    name = f"baton-probe-{os.getpid()}"
    if _run("ip", "netns", "add", name, check=False):
        return "network namespaces cannot be made here"
    _run("ip", "netns", "del", name)
    return ""


@dataclass
class Harm:
    """What a held wire does to packets, each way."""

    cut: bool = False
    loss: float = 0.0
    repeat: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)
    """Drawn anew for every packet, so packets overtake each other."""


class Hosts:
    """Hosts 0 and 1, at 10.77.0.1 and 10.77.0.2, until `close`."""

    def __init__(self, wire: Wire, *, seed: str = "wire") -> None:
        serial = f"{os.getpid()}-{next(_serial)}"
        self.names = (f"baton-a-{serial}", f"baton-b-{serial}")
        self.addresses = ["10.77.0.1", "10.77.0.2"]
        self.harm = Harm()
        self._wire = wire
        self._carrier: Carrier | None = None
        for name in self.names:
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        if wire == "veth":
            peer = ("peer", "name", "wire", "netns", self.names[1])
            _run("ip", "-n", self.names[0], "link", "add", "wire", "type", "veth", *peer)
        else:
            ends = tuple(self._tun(host) for host in (0, 1))
            self._carrier = Carrier(ends, self.harm, random.Random(seed))
        for host in (0, 1):
            self._address(host, "add")
            _run("ip", "-n", self.names[host], "link", "set", "wire", "up")

    @contextmanager
    def inside(self, host: int) -> Iterator[None]:
        """The calling thread, and every thread it starts, are on this host."""
        with (
            open("/proc/thread-self/ns/net") as home,
            open(f"/run/netns/{self.names[host]}") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def cut(self) -> None:
        """Nothing gets through any more, either way, and no end is told."""
        if self._wire == "veth":
            _run("ip", "-n", self.names[1], "link", "set", "wire", "down")
        self.harm.cut = True

    def mend(self) -> None:
        if self._wire == "veth":
            _run("ip", "-n", self.names[1], "link", "set", "wire", "up")
        self.harm.cut = False

    def move(self, host: int, address: str) -> None:
        """The host gets another address; packets to the old one reach nobody."""
        self._address(host, "del")
        self.addresses[host] = address
        self._address(host, "add")

    def netem(self, *harm: str) -> str:
        """Have the kernel harm a veth wire; says why it cannot, or nothing."""
        failed = [
            _run("tc", "-n", name, "qdisc", "add", "dev", "wire", "root", "netem", *harm,
                 check=False)
            for name in self.names
        ]  # fmt: skip
        return failed[0]

    def close(self) -> None:
        if self._carrier is not None:
            self._carrier.close()
        for name in self.names:
            _run("ip", "netns", "del", name)

    def _address(self, host: int, what: str) -> None:
        address = f"{self.addresses[host]}/24"
        _run("ip", "-n", self.names[host], "addr", what, address, "dev", "wire")

    def _tun(self, host: int) -> int:
        with self.inside(host):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN_NO_PI))
        return fd


@dataclass
class Carrier:
    """Carries packets between two TUN devices, as its harm says."""

    ends: tuple[int, ...]
    harm: Harm
    chance: random.Random
    num_lost: int = 0
    num_carried: int = 0
    _due: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    """When, in what order, to which end, which packet."""
    _order: "count[int]" = field(default_factory=count)

    def __post_init__(self) -> None:
        self._waker = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="wire")
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._waker, 1)
        self._thread.join()
        for fd in (*self.ends, self._waker):
            os.close(fd)

    def _run(self) -> None:
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            ready, _, _ = select.select([*self.ends, self._waker], [], [], wait_s)
            if self._waker in ready:
                return
            for fd in ready:
                self._take(fd)
            self._deliver()

    def _take(self, fd: int) -> None:
        to = self.ends[1 - self.ends.index(fd)]
        with suppress(BlockingIOError, OSError):
            while packet := os.read(fd, _MAX_PACKET_BYTES):
                self._harm(to, packet)

    def _harm(self, to: int, packet: bytes) -> None:
        if self.harm.cut or self.chance.random() < self.harm.loss:
            self.num_lost += 1
            return
        for _ in range(1 + (self.chance.random() < self.harm.repeat)):
            due_s = time.monotonic() + self.chance.uniform(*self.harm.delay_s)
            heapq.heappush(self._due, (due_s, next(self._order), to, packet))

    def _deliver(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            _, _, to, packet = heapq.heappop(self._due)
            with suppress(OSError):  # a device that is down, or full: lost, as on any wire
                os.write(to, packet)
                self.num_carried += 1


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str, check: bool = True) -> str:
    """What it complained of, when it failed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10.0, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return (done.stderr.strip() or "failed") if done.returncode else ""
