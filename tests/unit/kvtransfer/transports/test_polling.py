"""Several descriptors behind one."""

import select
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from kvtransfer.transports.polling import DevicePoller, FdPoller, has_hung_up


@pytest.fixture
def socks() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def is_awake(poller: FdPoller, within_s: float = 0.0) -> bool:
    return bool(select.select([poller.fileno()], [], [], within_s)[0])


def test_a_poller_wakes_for_what_comes_and_for_room_while_told_to(
    socks: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = socks
    with closing(FdPoller()) as poller:
        poller.watch(ours.fileno())
        assert not is_awake(poller)
        poller.watch(ours.fileno(), writable=True)
        assert is_awake(poller) and poller.ready() == [ours.fileno()]
        poller.watch(ours.fileno())
        assert not is_awake(poller)
        theirs.send(b"x")
        assert is_awake(poller) and poller.ready() == [ours.fileno()]


def test_a_forgotten_descriptor_wakes_nobody(socks: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = socks
    with closing(FdPoller()) as poller:
        poller.watch(ours.fileno())
        theirs.send(b"x")
        poller.forget(ours.fileno())
        assert not is_awake(poller)


def test_a_socket_has_hung_up_even_while_something_of_it_is_to_be_read(
    socks: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = socks
    theirs.send(b"last")
    assert not has_hung_up(ours)
    theirs.close()
    assert has_hung_up(ours) and has_hung_up(theirs)


def test_a_device_at_work_makes_its_stream_look_until_it_is_done(
    socks: tuple[socket.socket, socket.socket],
) -> None:
    with closing(DevicePoller(socks[0])) as poller:
        assert not is_awake(poller)
        poller.ticker.run(True)
        assert is_awake(poller, within_s=5.0)
        poller.ticker.run(False)
        poller.ticker.clear()
        assert not is_awake(poller)
