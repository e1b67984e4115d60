"""The thread on which one stream's UCX works: moves byte ranges of one pool to or from one peer.

The thread ("kv-ucx") sleeps until UCX or the owner has something, so it neither spins a core nor
holds the owner up; what has happened is handed over through a descriptor that the owner polls.
After `stop` it says when nothing touches the pool any more.
"""

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from kvtransfer.transports.control import Waker
from kvtransfer.transports.polling import FdPoller
from kvtransfer.transports.ucx.cut import TaggedRanges
from kvtransfer.transports.ucx.session import (
    Direction,
    SessionBroke,
    UcxEvent,
    UcxFailed,
    UcxSession,
    WorkerUp,
    load_ucxx,
)

log = logging.getLogger(__name__)

QUIET_S: Final = 0.02
"""What cancelling takes, and a hundred times that for a thread that waits for a core."""
_EXIT_S: Final = 2.0
"""What the exit of the process waits for threads that nobody stopped."""


class UcxWorker:
    """Methods return at once; `events` says what came of them."""

    def __init__(self, pool: memoryview) -> None:
        """Ranges are of `pool`, which stays mapped until the thread has ended."""
        self._pool = np.frombuffer(pool, np.uint8)
        self._events: deque[UcxEvent] = deque()
        self._commands: deque[Callable[[UcxSession], None]] = deque()
        self._waker, self._notice = Waker(), Waker()
        self._stopping = False
        self._quiet = threading.Event()
        self._door = threading.Lock()
        """Held to use or close the descriptors that both threads know."""
        self._thread = threading.Thread(target=self._run, name="kv-ucx", daemon=True)
        _running.add(self)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when `events` has some."""
        return self._notice.fileno()

    def poller(self) -> FdPoller:
        """One that watches for events. Without a descriptor stops the thread and raises OSError."""
        try:
            poller = FdPoller()
            poller.watch(self.fileno())
        except OSError:
            self.stop()
            raise
        return poller

    def connect_peer(self, address: bytes, *, probe: Direction) -> None:
        """Connect to the peer's worker, and send or await the byte that proves the way."""
        self._enqueue(lambda session: session.connect_peer(address, probe=probe))

    def move_ranges(self, ranges: TaggedRanges, direction: Direction) -> None:
        """Send these ranges of the pool, or fill them."""
        self._enqueue(lambda session: session.move_ranges(ranges, direction))

    def events(self) -> Iterator[UcxEvent]:
        """What has happened since the last call."""
        self._notice.clear()
        while self._events:
            yield self._events.popleft()

    def stop(self, *, wait_s: float = 0.0) -> bool:
        """Cancel everything. True when nothing reads or writes the pool any more. Idempotent."""
        with self._door:
            self._stopping = True
            self._waker.wake()
        if not self._quiet.wait(wait_s):
            return False
        self._release()
        return True

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _enqueue(self, command: Callable[[UcxSession], None]) -> None:
        self._commands.append(command)
        with self._door:
            self._waker.wake()

    def _release(self) -> None:
        """Close the descriptors once neither thread uses them."""
        with self._door:
            if self._stopping and self._quiet.is_set():
                self._waker.close()
                self._notice.close()

    # -- on its own thread ----------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except UcxFailed as error:
            self._tell(SessionBroke(str(error)))
        except Exception as error:
            log.exception("a UCX worker stopped")
            self._tell(SessionBroke(f"UCX: {error}"))
        finally:
            self._pool = np.empty(0, np.uint8)
            self._quiet.set()
            _running.discard(self)
            self._release()

    def _serve(self) -> None:
        """Run until stopped. On return, or raise, UCX has let go of the pool."""
        api, _ = load_ucxx()
        try:
            session = UcxSession(self._pool, wake_fd=self._waker.fileno())
            try:
                self._tell(WorkerUp(session.address))
                while not self._stopping:
                    self._waker.clear()
                    while self._commands:
                        self._commands.popleft()(session)
                    for event in session.step():
                        self._tell(event)
                    session.sleep()
            finally:
                session.close()
        except api.UCXError as error:
            raise UcxFailed(f"UCX: {error}") from error

    def _tell(self, event: UcxEvent) -> None:
        self._events.append(event)
        with self._door:
            self._notice.wake()


def _stop_all() -> None:
    """A thread inside UCX while the interpreter goes would end the process by a signal."""
    until_s = time.monotonic() + _EXIT_S
    workers = list(_running)
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.join(max(0.0, until_s - time.monotonic()))


_running: "weakref.WeakSet[UcxWorker]" = weakref.WeakSet()
atexit.register(_stop_all)
