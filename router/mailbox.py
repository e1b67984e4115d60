"""What the workers have said about one request and its client has not yet been given.

Filled by `router.registry`, emptied by `router.dispatch`; one reader, one event loop. Bounded:
a client that reads more slowly than the model writes is cut off instead of filling memory.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from router.letters import Letter


class Overflowed(Exception):
    """More letters than the bound were waiting; those after it are lost."""


class Mailbox:
    """`on_overflow` is called once, at once, whether or not anyone is reading."""

    def __init__(self, *, bound: int, on_overflow: Callable[[], None]) -> None:
        self._letters: deque[Letter] = deque()
        self._bound = bound
        self._on_overflow = on_overflow
        self._overflowed = False
        self._arrival: asyncio.Future[None] | None = None

    def put(self, letter: Letter) -> None:
        if self._overflowed:
            return
        if len(self._letters) >= self._bound:
            self._overflowed = True
            self._letters.clear()
            self._on_overflow()
        else:
            self._letters.append(letter)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def get(self, *, timeout_s: float) -> Letter:
        """The next letter. TimeoutError when none comes in time; Overflowed when cut off."""
        while not self._letters:
            if self._overflowed:
                raise Overflowed
            self._arrival = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(timeout_s):
                await self._arrival
        return self._letters.popleft()
