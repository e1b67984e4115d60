"""An event loop whose clock jumps to the next moment for which anything waits: time is a value."""

import asyncio
import selectors
from typing import Any


class _Jumps(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.now_s += max(0.0, timeout)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """For what waits for time alone: of what sockets bring it runs ahead."""

    def __init__(self) -> None:
        self._jumps = _Jumps()
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now_s
