"""Plain streams whose tokens go from a worker's step to their sockets without Python.

A stream is added with what is due of it, from whom, and how it is shown; take it out before
anything else is done with it. What a step has for others is left to them, in order. Nothing here
waits, and nothing is written that is not due.
"""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import finalize

from protocol.codec import MAX_MESSAGE_BYTES
from protocol.ids import Epoch, RequestId
from protocol.process.metrics import TokenHistogram
from router.fast_path.native.library import Passed, kernels
from router.fast_path.socket_events import SocketEvents

_MAX_STEP_TOKENS = 8_192
"""A larger step is left to others, whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenStream:
    """What has passed of one that is in the table no more."""

    token_ids: Sequence[int]
    last_at: float
    """When the last of them passed, on the clock of `pass_step`."""
    rest: bytes
    """What its socket did not take: to be written before anything else."""


class FastPath:
    """Owned by one event loop's thread. `gaps` counts the seconds between a stream's tokens."""

    def __init__(self, library: ctypes.PyDLL, *, gaps: TokenHistogram) -> None:
        self._library = library
        self._gaps = gaps  # lent to C
        counted = [each.buffer_info()[0] for each in (gaps.bounds, gaps.counts, gaps.sum)]
        at = library.baton_streams_make(counted[0], len(gaps.bounds), *counted[1:])
        if not at:
            raise MemoryError("no room for a table of streams")
        self._at = ctypes.c_void_p(at)
        finalize(self, library.baton_streams_drop, self._at)
        self._left = (ctypes.c_uint64 * (2 * _MAX_STEP_TOKENS))()
        self._stuck = (ctypes.c_int64 * _MAX_STEP_TOKENS)()
        self._passed = Passed(
            left=ctypes.addressof(self._left), stuck=ctypes.addressof(self._stuck),
            room=_MAX_STEP_TOKENS,
        )  # fmt: skip
        self._passed_at = ctypes.byref(self._passed)
        self._pass_step = library.baton_streams_pass_step
        self._when_stuck: dict[int, Callable[[], None]] = {}

    @property
    def num_streams(self) -> int:
        return len(self._when_stuck)

    def add_stream(
        self,
        request: RequestId,
        *,
        epoch: Epoch,
        attempt: int,
        due: int,
        events: SocketEvents,
        last_at: float,
        when_stuck: Callable[[], None],
    ) -> int:
        """Its slot. From now on tokens of `request` with the indices `due`, `due + 1`, ... pass, if
        the worker of `epoch` says them of `attempt`. `when_stuck` is called, after the step,
        when its socket has not taken all: it is to be taken out. Raises MemoryError."""
        name, around = request.encode(), events.before + events.after
        slot: int = self._library.baton_streams_add(
            self._at, name, len(name), epoch, attempt, due, events.socket, events.is_chunked,
            around, len(events.before), len(events.after), last_at,
        )  # fmt: skip
        if slot < 0:
            raise MemoryError(f"no room for the stream of {request}")
        self._when_stuck[slot] = when_stuck
        return slot

    def last_at(self, slot: int) -> float:
        """When its last token passed."""
        seconds: float = self._library.baton_streams_last_at(self._at, slot)
        return seconds

    def take_stream(self, slot: int) -> TakenStream:
        del self._when_stuck[slot]
        library, last_at = self._library, self.last_at(slot)
        token_ids = array("q", bytes(8 * library.baton_streams_num_ids(self._at, slot)))
        rest = bytearray(library.baton_streams_num_rest(self._at, slot))
        to = (ctypes.c_char * len(rest)).from_buffer(rest) if rest else None
        library.baton_streams_take(self._at, slot, token_ids.buffer_info()[0], to)
        return TakenStream(token_ids=token_ids, last_at=last_at, rest=bytes(rest))

    def pass_step(self, frame: bytes, *, epoch: Epoch, now: float) -> list[bytes] | None:
        """What of it is for others: each an `Emit`, packed. None: it is no step, or of a form not
        known here, and nothing has been done."""
        if len(frame) > MAX_MESSAGE_BYTES:
            return None
        passed = self._passed
        if not self._pass_step(self._at, frame, len(frame), epoch, now, self._passed_at):
            return None
        if passed.num_stuck:
            for slot in self._stuck[: passed.num_stuck]:
                if (when_stuck := self._when_stuck.get(slot)) is not None:
                    when_stuck()
        left = self._left[: 2 * passed.num_left] if passed.num_left else []
        return [frame[a:b] for a, b in zip(left[::2], left[1::2], strict=True)]


def make_fast_path(gaps: TokenHistogram) -> FastPath | None:
    """None where there is no C compiler: then all tokens go the general way."""
    library = kernels()
    return None if library is None else FastPath(library, gaps=gaps)
