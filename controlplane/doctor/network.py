"""Checks of what lies between hosts: TCP's limits, RDMA devices, UCX. Pure."""

from controlplane.doctor.facts import Facts, NetworkFacts
from controlplane.doctor.finding import Finding, note, ok, size, warn

LOOPBACK_MTU = 65_536
"""What Linux gives loopback: large segments cost fewer turns through the stack."""
ENOUGH_BUFFER_BYTES = 4 << 20
"""25 Gb/s times 1.3 ms; Linux gives 6 and 4 MiB unasked."""


def check(facts: Facts) -> list[Finding]:
    network = facts.network
    return [_loopback(network), _buffers(network), _rdma(network), _ucx(network)]


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
        return note(
            "tcp-buffers",
            value,
            "Raise the last number of net.ipv4.tcp_rmem and tcp_wmem to the link's speed times"
            " its round trip, at least 4 MiB.",
        )
    return ok("tcp-buffers", value)


def _rdma(network: NetworkFacts) -> Finding:
    if not network.rdma:
        return note(
            "rdma", "no device", "Nothing to do, unless the host has an RDMA NIC: then load its"
            " driver."
        )  # fmt: skip
    value = "; ".join(f"{d.name} {d.rate} {'up' if d.active else 'down'}" for d in network.rdma)
    if not network.rdma_openable:
        return warn(
            "rdma",
            f"{value}, but /dev/infiniband is not open to this process",
            "Give the container the device: an RDMA device plugin, or --device /dev/infiniband.",
        )
    if not any(device.active for device in network.rdma):
        return warn("rdma", value, "Bring a port up: cable, switch and subnet manager decide.")
    return ok("rdma", value)


def _ucx(network: NetworkFacts) -> Finding:
    if network.ucx:
        return ok("ucx", f"ucxx {network.ucx}")
    return note(
        "ucx",
        "not installed",
        "Install the extra (pip install 'baton[ucx]') on hosts with RDMA NICs and CPU workers.",
    )
