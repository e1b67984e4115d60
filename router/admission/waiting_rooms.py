"""A waiting room for each version that is asked for, so that nobody waits for workers of another.

The bounds of the queue are each room's own: what one model has too much of costs no other. One
event loop owns them.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from protocol.messages import ServedVersion
from protocol.process.metrics import RouterMetrics
from router.admission.waiting_room import QueueLimits, WaitingRoom

MOST_IDLE = 64
"""Rooms in which nobody waits are kept for what they have measured, the last ones."""


class WaitingRooms:
    def __init__(
        self,
        *,
        limits: QueueLimits,
        metrics: RouterMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._rooms: OrderedDict[ServedVersion | None, WaitingRoom] = OrderedDict()
        metrics.queue_tokens.set_function(self._num_tokens)

    def __len__(self) -> int:
        return len(self._rooms)

    def room_of(self, version: ServedVersion | None) -> WaitingRoom:
        """Where requests of that version wait."""
        room = self._rooms.get(version)
        if room is None:
            self._drop_idle()
            room = WaitingRoom(limits=self._limits, metrics=self._metrics, clock=self._clock)
            self._rooms[version] = room
        self._rooms.move_to_end(version)
        return room

    def note_room(self) -> None:
        """A worker said something: there may be room that was not there."""
        for room in self._rooms.values():
            room.note_room()

    def _drop_idle(self) -> None:
        idle = [version for version, room in self._rooms.items() if room.is_idle]
        for version in idle[: max(0, len(idle) + 1 - MOST_IDLE)]:
            del self._rooms[version]

    def _num_tokens(self) -> int:
        return sum(room.num_tokens for room in self._rooms.values())
