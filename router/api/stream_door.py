"""How a stream's pieces reach its connection without a coroutine each: an extension of the ASGI
scope, for ASGI has none."""

from typing import Protocol

EXTENSION = "baton.stream"
"""In the scope's `extensions`: a `StreamDoor`."""


class StreamDoor(Protocol):
    def write_now(self, body: bytes) -> int:
        """A piece of the body of a response that has begun, written whether or not the client has
        taken what came before. Returns how many bytes wait for it now; 0 once it is gone."""
