"""What the guard of the quick tier refuses, and what it lets pass."""

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
import uvloop
import zmq
from support.purity import NotPure, is_guarded, pure


def do_nothing() -> None: ...


def fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def on_a_thread(act: Callable[[], object]) -> None:
    def run() -> None:
        with suppress(NotPure):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


IMPURE: dict[str, Callable[[], object]] = {
    "socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "unix-listener": lambda: socket.socket(socket.AF_UNIX).bind("\0baton-purity"),
    "unix-client": lambda: socket.socket(socket.AF_UNIX).connect("\0baton-purity"),
    "zmq": lambda: zmq.Socket(zmq.Context.instance(), zmq.PAIR),
    "uvloop": lambda: uvloop.new_event_loop(),
    "process": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "shell": lambda: os.system("true"),
    "fork": fork,
    "spawn": lambda: multiprocessing.get_context("spawn").Process(target=do_nothing).start(),
}


@pytest.mark.parametrize("act", IMPURE.values(), ids=IMPURE.keys())
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the socket that was refused
def test_a_socket_or_a_process_is_refused_with_what_to_do(act: Callable[[], object]) -> None:
    with (
        pytest.raises(NotPure, match=r"List its file in NOT_PURE of tests/support/tiers\.py"),
        pure(),
    ):
        act()


def test_a_refusal_that_the_code_under_test_caught_fails_all_the_same() -> None:
    with pytest.raises(NotPure), pure(), suppress(Exception):
        subprocess.run(["true"], check=True)


def test_threads_that_the_test_starts_are_held_to_it() -> None:
    with pytest.raises(NotPure), pure():
        on_a_thread(IMPURE["process"])


def test_threads_from_before_may_do_what_they_like() -> None:
    begin, done = threading.Event(), list[int]()

    def run() -> None:
        begin.wait()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            done.append(sock.fileno())

    thread = threading.Thread(target=run)
    thread.start()
    with pure():
        begin.set()
        thread.join()
    assert done


def test_an_event_loop_and_a_pair_of_unix_sockets_are_pure() -> None:
    with pure():
        asyncio.run(asyncio.sleep(0))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.send(b"x")
            assert theirs.recv(1) == b"x"


def test_a_test_of_the_quick_tier_is_guarded() -> None:
    assert is_guarded()
