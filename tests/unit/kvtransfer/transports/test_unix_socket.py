"""Sockets of planes within a host, in a folder that several containers share."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtransfer.transports.base import Unreachable
from kvtransfer.transports.unix_socket import UnixPort, connect_to
from protocol.errors import TransferError
from protocol.ids import Epoch

EPOCH = Epoch(7)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[UnixPort]:
    port = UnixPort("kv", epoch=EPOCH, folder=str(tmp_path))
    yield port
    port.close()


def reaches(port: UnixPort) -> bool:
    with connect_to(port.address):
        sock = port.accept()
        if sock is not None:
            sock.close()
        return sock is not None


def test_a_socket_in_a_folder_is_reached_by_its_path(port: UnixPort, tmp_path: Path) -> None:
    assert Path(port.address).parent == tmp_path and reaches(port)


def test_only_its_user_may_connect(port: UnixPort) -> None:
    assert stat.S_IMODE(os.stat(port.address).st_mode) == 0o600


def test_without_a_folder_nothing_is_in_any_file_system() -> None:
    port = UnixPort("kv", epoch=EPOCH)
    assert "/" not in port.address and reaches(port)
    port.close()


def test_the_socket_goes_with_its_listener(port: UnixPort, tmp_path: Path) -> None:
    port.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(Unreachable):
        connect_to(port.address)


def test_what_killed_processes_left_is_removed_and_what_lives_stays(
    port: UnixPort, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "baton-kv-7-00c0ffee"))
    another = UnixPort("kv", epoch=EPOCH, folder=str(tmp_path))
    left = {str(path) for path in tmp_path.iterdir()}
    assert left == {port.address, another.address} and reaches(port)
    another.close()


def test_one_that_starts_beside_it_does_not_take_it_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chmod = Path.chmod

    def between_bind_and_listen(path: Path, mode: int) -> None:
        monkeypatch.undo()
        UnixPort("kv", epoch=EPOCH, folder=str(tmp_path)).close()
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", between_bind_and_listen)
    port = UnixPort("kv", epoch=EPOCH, folder=str(tmp_path))
    assert reaches(port)
    port.close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"nowhere.*No such file"):
        UnixPort("kv", epoch=EPOCH, folder=str(tmp_path / "nowhere"))


def test_who_starts_meanwhile_does_not_take_one_that_does_not_listen_yet_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = list[UnixPort]()

    def chmod(path: str, mode: int) -> None:
        """Between bind and listen."""
        monkeypatch.undo()
        others.append(UnixPort("kv", epoch=EPOCH, folder=str(tmp_path)))

    monkeypatch.setattr(os, "chmod", chmod)
    port = UnixPort("kv", epoch=EPOCH, folder=str(tmp_path))
    assert reaches(port) and all(map(reaches, others))
    for one in (port, *others):
        one.close()
    assert not list(tmp_path.iterdir())
