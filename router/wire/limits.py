"""What is taken of a client before it is one: bytes, counts, seconds."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """What is read of a client before anything is known of it."""

    max_bytes: int = 32 << 10
    """Request line and headers; as much as nginx takes. Beyond it 431."""
    max_headers: int = 128
    """Beyond it 431."""
    max_target_bytes: int = 8 << 10
    """Beyond it 414."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    head: HeadLimits = field(default_factory=HeadLimits)
    head_timeout_s: float = 20.0
    """From the connection, or a later request's first byte, to the end of the request's head."""
    keep_alive_s: float = 75.0
    """Silence between requests (`router.settings`)."""
    write_timeout_s: float = 60.0
    """A client that takes no bytes for this long is cut off."""
    half_closed_s: float = 0.5
    """A client that sent its FIN either waits for its answer or is gone; nothing but writing to it
    would tell. So much longer an answer is made before it must have begun to be taken."""
    last_request_s: float = 30.0
    """The same for one that had said that this was its last request: it may well wait."""
    last_idle_s: float = 0.0
    """`keep_alive_s` once this router drains: a client that was not told of it by its last answer
    may still send one more request, which is answered and told."""
    linger_s: float = 2.0
    """What a refused client still sends is read and dropped for this long: closing on it would
    reset the connection and lose the answer."""
