"""Frames of a TCP data stream: sealed headers, messages, and the bytes of chunks.

Source to sink, on every lane: a header, a message, and the bytes of its chunk. Sink to source, on
lane 0 alone: `Credit`, without frames. Every length is bounded before anything is read by it; what
makes no sense ends the stream, because nothing after it can be trusted.
"""

import struct
from dataclasses import dataclass
from typing import Final

import xxhash

from kvtransfer.messages import MAX_STREAM_MESSAGE_BYTES
from kvtransfer.transports.tcp.messages import TcpToSink, tcp_to_sink
from protocol.errors import WireError

_MAGIC: Final = b"BKV2"
_FIELDS: Final = struct.Struct("<4sIQQQ")
"""magic, bytes of the message, bytes of the body, number, seal of the message."""
_SEAL: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _FIELDS.size + _SEAL.size
MAX_BODY_BYTES: Final = 1 << 30
"""A chunk is a few MiB, or one block; no block is a GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What comes next on a lane."""

    message_bytes: int
    body_bytes: int
    number: int
    """Of a chunk: its own, counted from 1 over all lanes. Of a finish: of the last chunk that
    was begun before it, so a sink knows what to wait for."""
    message_seal: int

    def check_message(self, packed: bytes) -> None:
        """Raises WireError unless this is the message."""
        if xxhash.xxh3_64_intdigest(packed) != self.message_seal:
            raise WireError("a frame's message is broken")


def pack_head(message: TcpToSink, *, number: int, body_bytes: int) -> bytes:
    """Header and message of a frame."""
    return seal_head(tcp_to_sink.encode(message), number=number, body_bytes=body_bytes)


def seal_head(packed: bytes, *, number: int, body_bytes: int) -> bytes:
    """Header and message of a frame, of a message that is packed already."""
    fields = _FIELDS.pack(_MAGIC, len(packed), body_bytes, number, xxhash.xxh3_64_intdigest(packed))
    return fields + _SEAL.pack(xxhash.xxh3_64_intdigest(fields)) + packed


def unpack_header(packed: bytes) -> Header:
    """Raises WireError for what is not a whole, sealed header within bounds."""
    if len(packed) != HEADER_BYTES:
        raise WireError(f"a frame header of {len(packed)} bytes")
    fields = packed[: _FIELDS.size]
    (seal,) = _SEAL.unpack(packed[_FIELDS.size :])
    magic, message_bytes, body_bytes, number, message_seal = _FIELDS.unpack(fields)
    if magic != _MAGIC or seal != xxhash.xxh3_64_intdigest(fields):
        raise WireError("a frame header is broken")
    if not 0 < message_bytes <= MAX_STREAM_MESSAGE_BYTES or body_bytes > MAX_BODY_BYTES:
        raise WireError(f"a frame of {message_bytes} and {body_bytes} bytes")
    return Header(
        message_bytes=message_bytes, body_bytes=body_bytes, number=number,
        message_seal=message_seal,
    )  # fmt: skip
