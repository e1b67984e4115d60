"""A network of pods: a bridge, a namespace for each pod, addresses of pods and of services.

No CNI and no policies: every pod reaches every other, as in a cluster without NetworkPolicy.
"""

import ipaddress
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network
_serial = count(1)
SPACES = {4: "10.213.{}.0/24", 6: "fd0b:a70:{:x}::/64"}
"""Of networks, by their family."""
BRIDGE_MAC = "02:ba:70:00:00:01"


class NoNamespaces(Exception):
    """This machine or user may not make them."""


def can_have_pods() -> bool:
    """Whether this user may, here."""
    words = ("unshare", "--net", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "x", "/mnt")
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def ip(*words: str) -> None:
    done = subprocess.run(("ip", *words), capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNamespaces(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass(slots=True)
class Network:
    """One per cluster; names carry our pid, so that several clusters do not meet."""

    bridge: str
    subnet: Subnet
    _numbers: "count[int]" = field(default_factory=lambda: count(2))
    _services: "count[int]" = field(default_factory=lambda: count(200))
    _spaces: list[str] = field(default_factory=list)

    @property
    def gateway(self) -> str:
        return str(self.subnet[1])

    def add_service(self) -> str:
        """An address of this machine, on which a service can listen."""
        address = str(self.subnet[next(self._services)])
        ip("address", "add", address, "dev", self.bridge, *_at_once(self.subnet))
        return address

    @contextmanager
    def pod(self) -> Iterator[tuple[str, str]]:
        """A network namespace with an interface on the bridge: its name, and the pod's address."""
        number = next(self._numbers)
        assert number < 200, "a network has addresses for so many pods"
        name, address = f"{self.bridge}-{number}", str(self.subnet[number])
        outer, inner = f"{self.bridge}v{number}", f"{self.bridge}p{number}"
        ip("netns", "add", name)
        self._spaces.append(name)
        try:
            ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
            ip("link", "set", outer, "master", self.bridge, "up")
            for words in (
                ("link", "set", inner, "name", "eth0"),
                ("link", "set", "lo", "up"),
                ("link", "set", "eth0", "up"),
                (
                    "address",
                    "add",
                    f"{address}/{self.subnet.prefixlen}",
                    "dev",
                    "eth0",
                    *_at_once(self.subnet),
                ),
                ("route", "add", "default", "via", self.gateway),
            ):
                ip("-n", name, *words)
            yield name, address
        finally:
            self._spaces.remove(name)
            with suppress(NoNamespaces):
                ip("netns", "delete", name)


@contextmanager
def network(family: int = 4) -> Iterator[Network]:
    """Of IPv4 or IPv6 alone. Raises NoNamespaces where that needs rights which we have not."""
    name = f"b{os.getpid() % 10**7}{chr(ord('a') + next(_serial) % 26)}"
    # With an address of its own: one that it has of its ports changes with them, and pods go on
    # sending to the old one. Without snooping, which loses what looks for a new neighbour (IPv6).
    words = ("address", BRIDGE_MAC, "type", "bridge", "mcast_snooping", "0")
    ip("link", "add", name, *words)
    try:
        ip("link", "set", name, "up")
        made = Network(bridge=name, subnet=_free_subnet(name, SPACES[family]))
        yield made
    finally:
        with suppress(NoNamespaces):
            ip("link", "delete", name)


def _free_subnet(bridge: str, space: str) -> Subnet:
    """One that no route of this machine has, and from now on ours."""
    for number in _starting_at(os.getpid() % 256):
        subnet = ipaddress.ip_network(space.format(number))
        if _num_owners(subnet) > 0:
            continue
        address = f"{subnet[1]}/{subnet.prefixlen}"
        ip("address", "add", address, "dev", bridge, *_at_once(subnet))
        if _num_owners(subnet) == 1:
            return subnet
        ip("address", "flush", "dev", bridge)
    raise NoNamespaces(f"no subnet {space} is free")


def _starting_at(first: int) -> Sequence[int]:
    return [(first + step) % 256 for step in range(256)]


def _at_once(subnet: Subnet) -> Sequence[str]:
    """An address of IPv6 is of use only after nobody answered to it, unless told otherwise."""
    return ("nodad",) if subnet.version == 6 else ()


def _num_owners(subnet: Subnet) -> int:
    shown = subprocess.run(("ip", "-o", "address"), capture_output=True, text=True, check=True)
    return shown.stdout.count(f" {subnet[1]}/{subnet.prefixlen} ")
