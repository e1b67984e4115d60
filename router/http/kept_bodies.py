"""Bodies of requests that are being answered, for those that must begin anew: their model's last
worker left before a token, and the name now stands for another revision, with a text of its own.

Not thread-safe: one event loop owns it.
"""

from collections import OrderedDict
from itertools import count

MAX_BYTES = 32 << 20
"""Of all: some thousands of chats. The oldest make room, who most likely have their first token and
can begin no more."""
MOST_OF_ALL = 4
"""No body takes more than this part of the room: it would cost all others theirs."""


class KeptBodies:
    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bodies: OrderedDict[int, bytes] = OrderedDict()
        self._numbers = count()
        self.num_bytes = 0

    def keep(self, body: bytes) -> int:
        """Its number, to `drop` it by. One that is too large is not kept."""
        number = next(self._numbers)
        if len(body) * MOST_OF_ALL > self._max_bytes:
            return number
        self._bodies[number] = body
        self.num_bytes += len(body)
        while self.num_bytes > self._max_bytes:
            self.drop(next(iter(self._bodies)))
        return number

    def find(self, number: int) -> bytes | None:
        """None: it made room for others."""
        return self._bodies.get(number)

    def drop(self, number: int) -> None:
        self.num_bytes -= len(self._bodies.pop(number, b""))
