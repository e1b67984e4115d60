"""Server-sent events on their way to one client. The response begins with the first of them, so
that what is refused before is still a plain status."""

from collections.abc import Mapping

from router.http.exchange import Exchange


class EventStream:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.is_begun = False

    async def write(
        self, frame: bytes, headers: Mapping[str, str], *, is_last: bool = False
    ) -> None:
        """One or more events, or a piece of one. `headers` count with the first frame."""
        if not self.is_begun:
            self.is_begun = True
            await self._begin(headers)
        message = {"type": "http.response.body", "body": frame, "more_body": not is_last}
        await self._exchange.send(message)

    async def _begin(self, headers: Mapping[str, str]) -> None:
        shown = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",  # nginx would hold the events back
            **headers,
        }
        raw = [(name.encode(), value.encode("latin-1")) for name, value in shown.items()]
        await self._exchange.send({"type": "http.response.start", "status": 200, "headers": raw})
