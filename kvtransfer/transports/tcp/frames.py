"""What travels on a TCP data stream: sealed headers, words, and the bytes of chunks.

Source to sink, on every lane: frames of a header, a word (`Chunk` or `Finish`), and the bytes of
the chunk. Sink to source, on lane 0 alone: `Credit`. Every length is bounded before anything is
read by it; what makes no sense ends the stream, because nothing after it can be trusted.
"""

import struct
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
import xxhash

from kvtransfer.messages import MAX_WORD_BYTES, Chunk, Count, Finish
from protocol.codec import Codec
from protocol.errors import WireError

_MAGIC: Final = b"BKV2"
_FIELDS: Final = struct.Struct("<4sIQQQ")
"""magic, bytes of the word, bytes of the body, number, seal of the word."""
_SEAL: Final = struct.Struct("<Q")
HEADER_BYTES: Final = _FIELDS.size + _SEAL.size
MAX_BODY_BYTES: Final = 1 << 30
"""A chunk is a few MiB, or one block; no block is a GiB."""
MAX_CREDIT_BYTES: Final = 64
MAX_LANES: Final = 16
Total = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62))]


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """Sink -> source: this many bytes of chunks may have been sent since the stream began."""

    total_bytes: Total


class Window(msgspec.Struct, frozen=True, kw_only=True, tag=1):
    """In a TCP hello's setup: the credit a stream begins with."""

    window_bytes: Count


FrameWord = Chunk | Finish
frame_word: Codec[FrameWord] = Codec(FrameWord, max_bytes=MAX_WORD_BYTES)
credit: Codec[Credit] = Codec(Credit, max_bytes=MAX_CREDIT_BYTES)
window: Codec[Window] = Codec(Window, max_bytes=MAX_CREDIT_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What comes next on a lane."""

    word_bytes: int
    body_bytes: int
    number: int
    """Of a chunk: its own, counted from 1 over all lanes. Of a finish: of the last chunk that
    was begun before it, so a sink knows what to wait for."""
    word_seal: int

    def check(self, word: bytes) -> None:
        """Raises WireError unless this is the word."""
        if xxhash.xxh3_64_intdigest(word) != self.word_seal:
            raise WireError("a frame's word is broken")


def pack_head(word: FrameWord, *, number: int, body_bytes: int) -> bytes:
    """Header and word of a frame."""
    packed = frame_word.encode(word)
    fields = _FIELDS.pack(_MAGIC, len(packed), body_bytes, number, xxhash.xxh3_64_intdigest(packed))
    return fields + _SEAL.pack(xxhash.xxh3_64_intdigest(fields)) + packed


def unpack_header(packed: bytes) -> Header:
    """Raises WireError for what is not a whole, sealed header within bounds."""
    if len(packed) != HEADER_BYTES:
        raise WireError(f"a frame header of {len(packed)} bytes")
    fields = packed[: _FIELDS.size]
    (seal,) = _SEAL.unpack(packed[_FIELDS.size :])
    magic, word_bytes, body_bytes, number, word_seal = _FIELDS.unpack(fields)
    if magic != _MAGIC or seal != xxhash.xxh3_64_intdigest(fields):
        raise WireError("a frame header is broken")
    if not 0 < word_bytes <= MAX_WORD_BYTES or body_bytes > MAX_BODY_BYTES:
        raise WireError(f"a frame of {word_bytes} and {body_bytes} bytes")
    return Header(word_bytes=word_bytes, body_bytes=body_bytes, number=number, word_seal=word_seal)
