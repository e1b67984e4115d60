"""By which transport KV moved between this worker and its peers, for whoever shows it.

Written by the sink's or the source's owner at each end, on their thread; read for every beat, on
another. Remembers the MAX_USES pairs of peer and transport that were used last.
"""

import threading
from collections import Counter, OrderedDict

from protocol.ids import WorkerId
from protocol.messages import TransportUse
from worker.reported.transfer_speed import FetchSpeed, TransferSpeed

MAX_USES = 32
"""A beat goes to every router twice a second: at most a few KB of it."""
_WHY_CHARS = 300


class TransportUses:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: OrderedDict[tuple[str, str], TransportUse] = OrderedDict()
        self._speeds: dict[tuple[str, str], TransferSpeed] = {}
        self._num_fetches: Counter[str] = Counter()

    def add(
        self,
        *,
        peer: WorkerId,
        transport: str,
        why: str,
        num_bytes: int,
        fetched: FetchSpeed | None = None,
    ) -> None:
        """One more fetch of so many bytes; the newest reason stays. None: its speed is the other
        side's to measure."""
        key = (peer, transport)
        with self._lock:
            self._num_fetches[transport] += 1
            before = self._uses.pop(key, None)
            speed = self._speeds.setdefault(key, TransferSpeed())
            if fetched is not None:
                speed.add_fetch(fetched)
            self._uses[key] = TransportUse(
                name=transport,
                peer=peer,
                why=why[:_WHY_CHARS],
                fetches=1 + (before.fetches if before else 0),
                bytes=num_bytes + (before.bytes if before else 0),
                bytes_per_s=speed.bytes_per_s,
                latency_s=speed.latency_s,
            )
            while len(self._uses) > MAX_USES:
                forgotten, _ = self._uses.popitem(last=False)
                del self._speeds[forgotten]

    def num_fetches(self) -> tuple[tuple[str, int], ...]:
        """Of each transport, since the start."""
        with self._lock:
            return tuple(sorted(self._num_fetches.items()))

    def latest(self) -> tuple[TransportUse, ...]:
        """The latest first."""
        with self._lock:
            return tuple(reversed(self._uses.values()))
