"""How a stream's pieces reach its connection without a coroutine each: an extension of the ASGI
scope, for ASGI has none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

EXTENSION = "baton.stream"
"""In the scope's `extensions`: a `StreamDoor`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LentSocket:
    """Where pieces of a body may be written past the door."""

    descriptor: int
    is_chunked: bool
    """Each piece is to be a chunk of HTTP/1.1."""


class StreamDoor(Protocol):
    def write_now(self, body: bytes) -> int:
        """A piece of the body of a response that has begun, written whether or not the client has
        taken what came before. Returns how many bytes wait for it now; 0 once it is gone."""

    def lend_socket(self, give_back: Callable[[], None]) -> LentSocket | None:
        """None: not now. `give_back` is called before anything else is written, and before the
        socket is closed: from then on nothing may be written past the door."""

    def write_rest(self, rest: bytes) -> int:
        """What a lent socket did not take, as it is; otherwise as `write_now`."""
