"""Sockets on loopback."""

import socket

import pytest

from kvtransfer.transports.planes import PORTS, port_of
from protocol.channel.port import RouterPort
from protocol.errors import SettingsError
from protocol.process.listening import bound_socket, bracketed, open_socket
from protocol.process.settings import ProcessSettings, WorkerSettings, load


@pytest.mark.parametrize(("host", "reached_at"), [("::", "127.0.0.1"), ("::", "::1")])
def test_all_addresses_are_those_of_both_families(host: str, reached_at: str) -> None:
    with bound_socket(host, 0, setting="port") as listening:
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection((reached_at, port), timeout=10) as there:
            assert there.getpeername()[1] == port


def test_one_address_is_of_its_family_alone() -> None:
    with bound_socket("::1", 0, setting="port") as listening:
        listening.listen()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=10)


def test_without_ipv6_all_addresses_are_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, kind)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    made, address = open_socket("::")
    made.close()
    assert address == "0.0.0.0"
    with pytest.raises(OSError):
        open_socket("::1")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_named_with_its_setting(host: str) -> None:
    with bound_socket(host, 0, setting="port") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError) as error:
            bound_socket(host, port, setting="port")
    where = f"{bracketed(host)}:{port}"
    assert str(error.value) == f"port: cannot listen on {where}: Address already in use"


def test_a_worker_s_control_port_listens_on_ipv6() -> None:
    port = RouterPort(host="::1")
    try:
        with socket.create_connection(("::1", port.port), timeout=10):
            pass
    finally:
        port.close()


def test_an_address_is_the_same_with_brackets() -> None:
    settings = load(WorkerSettings, ["--model", "m", "--host", "[::]", "--advertise", "[::1]"])
    assert (settings.host, settings.advertise) == ("::", "::1")
    assert ProcessSettings().redis_address.place == "127.0.0.1:6379"


def test_planes_over_tcp_have_the_ports_after_that_of_control() -> None:
    assert [port_of(name, 9500) for name in PORTS] == [9501, 9502, 9503]
    assert (port_of("shm", 9500), port_of("tcp", 0)) == (0, 0)
