"""Server-sent events on their way to one client. The response begins with the first of them, so
that what is refused before is still a plain status."""

from collections.abc import Mapping

from router.http.exchange import Exchange
from router.requests.events import SlowClient


class EventStream:
    """`begin` it, `write`, and say with `write_waiting` which is the last."""

    __slots__ = ("_exchange", "_max_lag_bytes", "door", "is_begun", "write_now")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.door = exchange.stream_door
        self.write_now = self.door.write_now
        """Whoever calls it calls `check_lag`."""
        self._max_lag_bytes = exchange.max_lag_bytes
        self.is_begun = False

    def begin(self, headers: Mapping[str, str]) -> None:
        self.is_begun = True
        shown = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would hold the events back
            **headers,
        }
        raw = [(name.encode(), value.encode("latin-1")) for name, value in shown.items()]
        head = {"type": "http.response.start", "status": 200, "headers": raw}
        self._exchange.write_head(head)

    def write(self, frame: bytes) -> None:
        """One or more events, or a piece of one, at once. Raises SlowClient when more than
        `max_lag_bytes` wait for the client; they are written all the same."""
        self.check_lag(self.write_now(frame))

    def check_lag(self, num_bytes: int) -> None:
        """Raises SlowClient when these that wait are too many."""
        if num_bytes > self._max_lag_bytes:
            raise SlowClient(num_bytes=num_bytes)

    def write_anyway(self, frame: bytes) -> None:
        """The same of what has a bound of its own, as what is told of a prompt: it may wait beside
        what `write` counts."""
        self._max_lag_bytes += len(frame)
        self.write_now(frame)

    async def write_waiting(self, frame: bytes, *, is_last: bool = False) -> None:
        """The same, but waits while much waits for the client."""
        if frame or is_last:
            message = {"type": "http.response.body", "body": frame, "more_body": not is_last}
            await self._exchange.send(message)
