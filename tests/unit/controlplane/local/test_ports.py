"""Which ports of this machine are kept for a process that is going to listen."""

import socket
import sys

import pytest

from controlplane.local.ports import kept_ports
from protocol.errors import SettingsError

HOST = "127.0.0.1"


def test_any_ports_are_different_ones() -> None:
    with kept_ports(HOST, 0, num=20, setting="port") as ports:
        assert len(set(ports)) == 20


def test_ports_from_a_first_one_follow_it() -> None:
    with kept_ports(HOST, 0, num=1, setting="port") as (first,):
        pass
    try:
        with kept_ports(HOST, first, num=2, setting="port") as ports:
            assert ports == [first, first + 1]
    except SettingsError as error:  # the next one is somebody's
        assert f"{HOST}:{first + 1}" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a port without listening")
def test_a_port_is_kept_for_one_process_after_another_and_for_nobody_else() -> None:
    with kept_ports(HOST, 0, num=1, setting="port") as (port,):
        for _ in range(2):
            with socket.create_server((HOST, port)), socket.create_connection((HOST, port)):
                pass
            with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
                stranger.bind((HOST, port))


@pytest.mark.parametrize("first", [65535, 65530])
def test_ports_beyond_the_last_are_refused_by_name(first: int) -> None:
    says = r"metrics_port: cannot listen on 127\.0\.0\.1:65536"
    with (
        pytest.raises(SettingsError, match=says),
        kept_ports(HOST, first, num=10, setting="metrics_port"),
    ):
        pass


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        says = f"port: cannot listen on {HOST}:{port}"
        with (
            pytest.raises(SettingsError, match=says),
            kept_ports(HOST, port, num=1, setting="port"),
        ):
            pass


@pytest.mark.parametrize("host", ["no-such-host.invalid", "\u00fcn\u00efcode.invalid"])
def test_a_host_that_is_none_of_this_machine_is_the_host_s_fault(host: str) -> None:
    with (
        pytest.raises(SettingsError, match=r"^host: cannot listen on "),
        kept_ports(host, 0, num=1, setting="port"),
    ):
        pass
