"""Checks of what lies between hosts: TCP's limits, RDMA devices, UCX; and of two machines together.

Pure: facts in, findings out.
"""

from controlplane.doctor.facts import Facts, Finding, NetworkFacts, note, ok, size, warn

ETHERNET_MTU = 1500
LOOPBACK_MTU = 65_536
"""What Linux gives loopback: large segments cost fewer turns through the stack."""
ENOUGH_BUFFER_BYTES = 4 << 20
"""25 Gb/s times 1.3 ms; Linux gives 6 and 4 MiB unasked."""


def check_network(facts: Facts) -> list[Finding]:
    network = facts.network
    return [_loopback(network), _buffers(network), _rdma(network), _ucx(network)]


def check_pair(here: Facts, there: Facts, *, mtu: int | None) -> list[Finding]:
    """`mtu` is of the way between them, as this side's kernel knows it; None: cannot be told."""
    found = [_version(here, there), _place(here, there), *_rdma_pair(here, there)]
    if not one_host(here, there):
        found.append(_mtu(mtu))
    return found


def one_host(here: Facts, there: Facts) -> bool:
    """Both run on the same machine, in whatever containers."""
    return bool(here.boot) and here.boot == there.boot


def shares_memory(here: Facts, there: Facts) -> str:
    """Why the two cannot share memory; "" when they can. The rule of `transports.shm`: an
    abstract socket is seen in its network namespace alone, and serves its own user."""
    if not one_host(here, there):
        return "another host"
    if here.network_namespace != there.network_namespace:
        return "same host, but another network namespace"
    if here.user != there.user:
        return f"same host, but user {there.user} there and {here.user} here"
    return here.memory.memfd_error or there.memory.memfd_error


def _loopback(network: NetworkFacts) -> Finding:
    if network.loopback_mtu is None:
        return note("loopback", "not found", "Bring it up: ip link set lo up.")
    value = f"MTU {network.loopback_mtu}"
    if network.loopback_mtu < LOOPBACK_MTU:
        return note("loopback", value, f"Set it back: ip link set lo mtu {LOOPBACK_MTU}.")
    return ok("loopback", value)


def _buffers(network: NetworkFacts) -> Finding:
    receive, send = network.receive_buffer_bytes, network.send_buffer_bytes
    if receive is None or send is None:
        return ok("tcp-buffers", "unknown")
    value = f"grow to {size(receive)} (receive) and {size(send)} (send)"
    if min(receive, send) < ENOUGH_BUFFER_BYTES:
        remedy = (
            "Raise the last number of net.ipv4.tcp_rmem and tcp_wmem to the link's speed times"
            " its round trip, at least 4 MiB."
        )
        return note("tcp-buffers", value, remedy)
    return ok("tcp-buffers", value)


def _rdma(network: NetworkFacts) -> Finding:
    if not network.rdma:
        remedy = "Nothing to do, unless the host has an RDMA NIC: then load its driver."
        return note("rdma", "no device", remedy)
    value = "; ".join(f"{d.name} {d.rate} {'up' if d.active else 'down'}" for d in network.rdma)
    if not network.rdma_openable:
        value += ", but /dev/infiniband is not open to this process"
        remedy = (
            "Give the container the device: an RDMA device plugin, or --device /dev/infiniband."
        )
        return warn("rdma", value, remedy)
    if not any(device.active for device in network.rdma):
        return warn("rdma", value, "Bring a port up: cable, switch and subnet manager decide.")
    return ok("rdma", value)


def _ucx(network: NetworkFacts) -> Finding:
    if network.ucx:
        return ok("ucx", f"ucxx {network.ucx}")
    remedy = "Install the extra (pip install 'baton[ucx]') on hosts with RDMA NICs and CPU workers."
    return note("ucx", "not installed", remedy)


def _version(here: Facts, there: Facts) -> Finding:
    if here.version != there.version:
        value = f"{here.version} here, {there.version} on {there.host}"
        remedy = "Run one version everywhere: workers of different ones may refuse each other."
        return warn("versions", value, remedy)
    return ok("versions", here.version)


def _place(here: Facts, there: Facts) -> Finding:
    why = shares_memory(here, there)
    if not why:
        return ok("place", f"{there.host}: the same host and network namespace, memory is shared")
    if not one_host(here, there):
        return ok("place", f"{there.host}: another host")
    remedy = "Run both as one user."
    if "namespace" in why:
        remedy = "Put both into one network namespace (hostNetwork: true, or one pod) to share it."
    return note("place", f"{there.host}: {why}; memory is not shared", remedy)


def _rdma_pair(here: Facts, there: Facts) -> list[Finding]:
    without = [facts.host for facts in (here, there) if not facts.network.rdma]
    if one_host(here, there) or len(without) == 2:
        return []
    if without:
        remedy = "Schedule both workers on hosts with RDMA NICs of one fabric."
        return [note("rdma-pair", f"no RDMA device on {without[0]}", remedy)]
    return [ok("rdma-pair", "devices on both hosts; nothing was sent over them")]


def _mtu(mtu: int | None) -> Finding:
    if mtu is None:
        return ok("path-mtu", "unknown")
    if mtu <= ETHERNET_MTU:
        remedy = (
            "Use jumbo frames (MTU 9000) on the whole way if switches and overlay allow: fewer"
            " packets for the same bytes."
        )
        return note("path-mtu", f"{mtu} bytes", remedy)
    return ok("path-mtu", f"{mtu} bytes")
