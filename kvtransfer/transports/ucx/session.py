"""What UCX holds for one stream: a context, a worker and an endpoint. The only file that knows
ucxx.

Belongs to one thread, which gives it commands and takes its events. Each stream has a context of
its own: UCX does not lock what the workers of one context share, and whatever broke is gone with
it. Does not know chunks or fetches.
"""

import ctypes
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvtransfer.transports.polling import FdPoller
from kvtransfer.transports.ucx.cut import TaggedRanges

log = logging.getLogger(__name__)

_RDMA_DEVICES: Final = Path("/sys/class/infiniband")
_TURN: Final = 256
"""Steps of progress between two looks at the owner: at most a few milliseconds."""
_IDLE_S: Final = 1.0
_CANCEL_S: Final = 1.0
"""UCX ends what is in flight 0.1 ms after its endpoint was closed."""
_CANCEL_POLL_S: Final = 0.001
_SEAL_BYTES: Final = 8
_CANCELLING: Final = "_ZNK4ucxx8Endpoint16getCancelingSizeEv"
_PROBE: Final = (1 << 64) - 1
Direction = Literal["send", "receive"]


class UcxFailed(Exception):
    """The peer, or UCX, failed."""


def why_not() -> str:
    """Why UCX is of no use in this process; empty when it is. Imports nothing."""
    if find_spec("ucxx") is None:
        return "ucxx is not installed: pip install 'baton[ucx]'"
    if "UCX_TLS" not in os.environ and not any(_RDMA_DEVICES.glob("*")):
        return (
            f"no RDMA device in {_RDMA_DEVICES}; without one plain tcp is faster: "
            "set UCX_TLS to use UCX all the same"
        )
    return ""


def load_ucxx() -> tuple[Any, Any]:
    """ucxx's low-level API and its view of a buffer. Raises UcxFailed."""
    # ucxx would stage through CUDA memory; our pools lie in host memory.
    os.environ.setdefault("UCX_RNDV_FRAG_MEM_TYPE", "host")
    try:
        import ucxx._lib.libucxx as api
        from ucxx._lib.arr import Array
    except (ImportError, OSError) as error:
        raise UcxFailed(f"ucxx cannot be imported: {error}") from error
    return api, Array


def _forget_cancelled(endpoint: Any) -> None:
    """Ask how many of its requests are being cancelled: only then does ucxx 0.52 forget those that
    were, and each keeps the endpoint, the worker and its descriptors for ever. Only C++ can ask."""
    import libucxx

    try:
        library = ctypes.CDLL(str(Path(libucxx.__file__).parent / "lib64" / "libucxx.so"))
        library[_CANCELLING](ctypes.c_void_p(endpoint.ucxx_ptr))
    except (OSError, AttributeError) as error:
        log.warning(
            "a UCX worker may be left behind: is this ucxx 0.52?", extra={"why": str(error)}
        )


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """The worker is up: what a peer needs to reach it."""

    address: bytes


@dataclass(frozen=True, slots=True)
class PeerReached:
    """A byte has come from the peer through UCX."""


@dataclass(frozen=True, slots=True)
class RangesMoved:
    """All of these ranges are through."""

    number: int


@dataclass(frozen=True, slots=True)
class SessionBroke:
    """Nothing moves any more. The worker is of no further use: `stop` it."""

    why: str


UcxEvent = WorkerUp | PeerReached | RangesMoved | SessionBroke


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests of one move, and what they read or write."""

    number: int | None
    """None: the probe."""
    requests: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=list)
    num_done: int = 0

    def is_over(self) -> bool:
        """Nothing of it is in flight, however it went."""
        return all(request.completed for request in self.requests)

    def is_through(self) -> bool:
        """Raises UcxFailed when a message of it failed."""
        requests = self.requests
        while self.num_done < len(requests) and requests[self.num_done].completed:
            if status := requests[self.num_done].status:
                raise UcxFailed(f"a message failed with UCX status {status}")
            self.num_done += 1
        return self.num_done == len(requests)


class UcxSession:
    """Raises UcxFailed, or ucxx's own error, from any method; then `close` it."""

    def __init__(self, pool: NDArray[np.uint8], *, wake_fd: int) -> None:
        """Ranges are of `pool`. `sleep` ends when `wake_fd` is readable."""
        self._api, self._array = load_ucxx()
        self._pool = pool
        features = (self._api.Feature.TAG, self._api.Feature.WAKEUP)
        self._context = self._api.UCXContext(feature_flags=features)
        self._worker = self._api.UCXWorker(
            self._context, enable_delayed_submission=False, enable_python_future=False
        )
        self._worker.init_blocking_progress_mode()
        self._version = ".".join(map(str, self._api.get_ucx_version()))
        address: bytes = self._worker.address.tobytes()
        self.address = self._seal(address) + address
        """What a peer needs to connect to us."""
        self._endpoint: Any = None
        self._batches: deque[_Batch] = deque()
        self._has_more = False
        self._poller = FdPoller()
        self._poller.watch(self._worker.epoll_file_descriptor)
        self._poller.watch(wake_fd)

    def connect_peer(self, sealed: bytes, *, probe: Direction) -> None:
        """Connect to the worker of this address, and send or await the byte that proves the way."""
        address = self._api.UCXAddress.create_from_buffer(self._opened(sealed))
        # Errors are reported to us: without that UCX ends the process when a peer dies.
        self._endpoint = self._api.UCXEndpoint.create_from_worker_address(
            self._worker, address, endpoint_error_handling=True
        )
        batch = _Batch(None)
        self._post(batch, np.ones(1, np.uint8), _PROBE, probe)
        self._batches.append(batch)

    def move_ranges(self, ranges: TaggedRanges, direction: Direction) -> None:
        """Send these ranges of the pool, or fill them."""
        batch = _Batch(ranges.number)
        tag = ranges.number << 32
        ends = (ranges.offsets_M + ranges.sizes_M).tolist()
        for place, start in enumerate(ranges.offsets_M.tolist()):
            self._post(batch, self._pool[start : ends[place]], tag | place, direction)
        self._batches.append(batch)

    def step(self) -> Iterator[UcxEvent]:
        """Let UCX work for a moment, and say what is through."""
        self._has_more = self._progress()
        yield from self._through()
        if self._endpoint is not None and not self._endpoint.alive:
            raise UcxFailed("UCX lost the peer")

    def sleep(self) -> None:
        """Until UCX has something to do, or somebody wakes us."""
        if not self._has_more and self._worker.arm():
            self._poller.ready(_IDLE_S)

    def close(self) -> None:
        """Cancel what is in flight, wait for it, and give everything back: requests, endpoint,
        worker and context in this order, or the process is not safe at its exit."""
        try:
            if self._endpoint is not None:
                self._endpoint.close_blocking()
                self._await_cancelled()
                _forget_cancelled(self._endpoint)
        finally:
            self._batches.clear()
            self._endpoint = None
            self._worker = None
            self._context = None
            self._pool = np.empty(0, np.uint8)
            self._poller.close()

    def _await_cancelled(self) -> None:
        """However long it takes: until then UCX may write, and the slots stay quarantined."""
        late_s = time.monotonic() + _CANCEL_S
        self._worker.progress()  # unlike progress_once it cancels what an error left
        while not all(batch.is_over() for batch in self._batches):
            self._poller.ready(_CANCEL_POLL_S)
            self._worker.progress()
            if time.monotonic() > late_s:
                log.error(
                    "UCX does not cancel, blocks stay quarantined: restart this worker",
                    extra={"num_moves": len(self._batches)},
                )
                late_s = math.inf

    def _seal(self, address: bytes) -> bytes:
        return xxhash.xxh3_64_digest(self._version.encode() + address)

    def _opened(self, sealed: bytes) -> bytes:
        """The address in it. UCX ends the process over bytes that are no address."""
        address = sealed[_SEAL_BYTES:]
        if not address or sealed[:_SEAL_BYTES] != self._seal(address):
            raise UcxFailed(f"the peer gave no address of UCX {self._version}, which we have")
        return address

    def _post(self, batch: _Batch, view: NDArray[np.uint8], tag: int, direction: Direction) -> None:
        assert self._endpoint is not None
        buffer = self._array(view)
        batch.buffers.append(buffer)
        act = self._endpoint.tag_send if direction == "send" else self._endpoint.tag_recv
        batch.requests.append(act(buffer, self._api.UCXXTag(tag)))

    def _progress(self) -> bool:
        """True when there may be more to do at once."""
        return all(self._worker.progress_once() for _ in range(_TURN))

    def _through(self) -> Iterator[UcxEvent]:
        for batch in tuple(self._batches):
            if batch.is_through():
                self._batches.remove(batch)
                yield PeerReached() if batch.number is None else RangesMoved(batch.number)
