"""Two ranks without NCCL: bytes between fake devices over a unix socket.

Passes the contract suite of the real library. Like it, launched sends and receives are done in
the order of their stream, a peer that dies is not noticed by itself, and only an abort gets
launched work off its stream.
"""

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from support.fake_driver import FakeDriver, FakeStream

from kvtransfer.device.collectives import PATIENCE_S, UNIQUE_ID_BYTES
from kvtransfer.device.driver import Stream
from kvtransfer.native.copy import Span
from protocol.errors import PeerLost, TransferError

_TURN_BYTES = 1 << 20


class FakeCollectives:
    version = "fake"

    def __init__(self, driver: FakeDriver, *, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self._driver = driver
        self.made: list[FakeCommunicator] = []

    def why_not(self, *, ours: str, theirs: str) -> str:
        return ""

    def unique_id(self) -> bytes:
        return secrets.token_bytes(UNIQUE_ID_BYTES)

    def join(self, unique_id: bytes, *, rank: int) -> "FakeCommunicator":
        made = FakeCommunicator(self._driver, unique_id, rank=rank)
        self.made.append(made)
        return made


class FakeCommunicator:
    def __init__(self, driver: FakeDriver, unique_id: bytes, *, rank: int) -> None:
        if len(unique_id) != UNIQUE_ID_BYTES or rank not in (0, 1):
            raise TransferError("no such communicator")
        self._driver = driver
        self._address = f"\0baton-fake-nccl-{unique_id[:16].hex()}"
        self.aborted = False
        self.num_groups = 0
        """Sends and receives that were begun."""
        self._failed = ""
        self._listening: socket.socket | None = None
        self._link: socket.socket | None = None
        if rank == 0:
            self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listening.bind(self._address)
            self._listening.listen(1)
            self._listening.setblocking(False)

    def fail(self, why: str) -> None:
        """A fault for tests: the library reports an error."""
        self._failed = why

    def settled(self) -> bool:
        if self._failed:
            raise PeerLost(f"the communicator failed: {self._failed}")
        if self._link is None and not self.aborted:
            self._meet()
        return self._link is not None

    def send(self, spans: Sequence[Span], stream: Stream) -> None:
        self.num_groups += 1
        for span in spans:
            view = self._driver.bytes_of(span)
            self._launch(stream, view, lambda link, part: link.send(part))

    def receive(self, spans: Sequence[Span], stream: Stream) -> None:
        self.num_groups += 1
        for span in spans:
            view = self._driver.bytes_of(span)
            self._launch(stream, view, lambda link, part: link.recv_into(part))

    def abort(self) -> None:
        self.aborted = True
        for sock in (self._listening, self._link):
            if sock is not None:
                sock.close()

    def _meet(self) -> None:
        if self._listening is not None:
            with suppress(BlockingIOError):
                self._link, _ = self._listening.accept()
                self._link.setblocking(False)
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(self._address)
        except OSError:
            sock.close()
        else:
            self._link = sock

    def _launch(
        self, stream: Stream, view: memoryview, move: Callable[[socket.socket, memoryview], int]
    ) -> None:
        assert isinstance(stream, FakeStream)
        moved, num_bytes = 0, len(view)

        def step() -> bool:
            nonlocal moved
            while moved < num_bytes and not self.aborted:
                assert self._link is not None
                try:
                    count = move(self._link, view[moved : moved + _TURN_BYTES])
                except (BlockingIOError, InterruptedError):
                    return False
                except OSError:
                    return self.aborted  # a dead peer: hangs, as the real one may
                if not count:
                    return self.aborted
                moved += count
            return True

        stream.launch(step)
