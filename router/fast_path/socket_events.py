"""How a stream's events are written to its socket, past the transport that owns it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketEvents:
    """An event is `before`, a text as a JSON string, `after`."""

    socket: int
    """Its descriptor."""
    is_chunked: bool
    """Each event is a chunk of HTTP/1.1."""
    before: bytes
    after: bytes
