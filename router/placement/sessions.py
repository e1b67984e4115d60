"""Which workers a session had last, and which it begins with, so that several routers agree."""

from collections import OrderedDict

import numpy as np
import xxhash
from numpy.typing import NDArray

from protocol.ids import WorkerId
from protocol.messages import ServedVersion
from router.placement.fleet import Fleet
from router.placement.place import Preferred

MAX_SESSIONS = 65_536
"""The least recently used are forgotten: about 20 MB, and more sessions than are open at once."""


class Sessions:
    def __init__(self, *, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._last: OrderedDict[tuple[str, ServedVersion | None], Preferred] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def preferred_workers(
        self, session: str, fleet: Fleet, version: ServedVersion | None = None
    ) -> Preferred | None:
        """Those of its last request here for that version while they are ready; of a session not
        seen, or whose decode worker is gone, those that rendezvous hashing names. None without
        decode workers."""
        last = self._last.get((session, version))
        ready = fleet.ready_of(version)
        if last is None or not _is_ready(fleet, ready, last.decode):
            return rendezvous(session, fleet, version)
        if last.prefill is not None and not _is_ready(fleet, ready, last.prefill):
            return Preferred(decode=last.decode, prefill=None)
        return last

    def note_placed(
        self,
        session: str,
        version: ServedVersion | None = None,
        *,
        prefill: WorkerId | None,
        decode: WorkerId,
    ) -> None:
        """Of one that was computed by its decode worker any prefill worker may have the next."""
        key = session, version
        self._last[key] = Preferred(decode=decode, prefill=prefill)
        self._last.move_to_end(key)
        while len(self._last) > self._max_sessions:
            self._last.popitem(last=False)


def rendezvous(
    session: str, fleet: Fleet, version: ServedVersion | None = None
) -> Preferred | None:
    """Of the ready workers of each role, of that version, the one whose name and the session hash
    highest: a worker that comes or goes moves only the sessions that are its own."""
    seed = xxhash.xxh3_64_intdigest(session.encode())
    is_ready = fleet.ready_of(version)[: fleet.num_slots] != 0
    is_decode = fleet.rows["is_decode"][: fleet.num_slots] != 0
    decode = _highest(fleet, np.flatnonzero(is_ready & is_decode), seed)
    if decode is None:
        return None
    return Preferred(
        decode=decode, prefill=_highest(fleet, np.flatnonzero(is_ready & ~is_decode), seed)
    )


def _highest(fleet: Fleet, slots: NDArray[np.int64], seed: int) -> WorkerId | None:
    if not len(slots):
        return None
    mixed = (fleet.name_hashes[slots] ^ np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return fleet.name_of(int(slots[int(mixed.argmax())]))


def _is_ready(fleet: Fleet, ready: NDArray[np.uint8], worker: WorkerId) -> bool:
    slot = fleet.slot_of(worker)
    return slot is not None and bool(ready[slot])
