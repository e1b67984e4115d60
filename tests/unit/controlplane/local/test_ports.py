"""Which ports of this machine may be given to a process."""

import socket

import pytest

from controlplane.local.ports import free_port, free_ports
from protocol.errors import SettingsError


def test_any_ports_are_different_ones() -> None:
    assert len(set(free_ports(0, num=20))) == 20


def test_ports_from_a_first_one_follow_it() -> None:
    first = free_ports(0, num=1)[0]
    try:
        assert free_ports(first, num=2) == [first, first + 1]
    except SettingsError as error:  # the next one is somebody's
        assert f"127.0.0.1:{first + 1}" in str(error)


@pytest.mark.parametrize("first", [65535, 65530])
def test_ports_beyond_the_last_are_refused_by_name(first: int) -> None:
    with pytest.raises(SettingsError, match=r"metrics_port: cannot listen on 127\.0\.0\.1:65536"):
        free_ports(first, num=10)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port: cannot listen on 127.0.0.1:{port}"):
            free_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "\u00fcn\u00efcode.invalid"])
def test_a_host_that_is_none_of_this_machine_is_the_host_s_fault(host: str) -> None:
    with pytest.raises(SettingsError, match=r"^host: cannot listen on "):
        free_port(host, 0)
