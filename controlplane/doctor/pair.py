"""Checks of two machines together: is it one, and what keeps the pair from a faster way. Pure."""

from controlplane.doctor.facts import Facts
from controlplane.doctor.finding import Finding, note, ok, warn

ETHERNET_MTU = 1500


def check(here: Facts, there: Facts, *, mtu: int | None) -> list[Finding]:
    """`mtu` is of the way between them, as this side's kernel knows it; None: cannot be told."""
    found = [_version(here, there), _place(here, there), *_rdma(here, there)]
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


def _version(here: Facts, there: Facts) -> Finding:
    if here.version != there.version:
        return warn(
            "versions",
            f"{here.version} here, {there.version} on {there.host}",
            "Run one version everywhere: workers of different ones may refuse each other.",
        )
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


def _rdma(here: Facts, there: Facts) -> list[Finding]:
    without = [facts.host for facts in (here, there) if not facts.network.rdma]
    if one_host(here, there) or len(without) == 2:
        return []
    if without:
        return [
            note(
                "rdma-pair",
                f"no RDMA device on {without[0]}",
                "Schedule both workers on hosts with RDMA NICs of one fabric.",
            )
        ]
    return [ok("rdma-pair", "devices on both hosts; nothing was sent over them")]


def _mtu(mtu: int | None) -> Finding:
    if mtu is None:
        return ok("path-mtu", "unknown")
    if mtu <= ETHERNET_MTU:
        return note(
            "path-mtu",
            f"{mtu} bytes",
            "Use jumbo frames (MTU 9000) on the whole way if switches and overlay allow: fewer"
            " packets for the same bytes.",
        )
    return ok("path-mtu", f"{mtu} bytes")
