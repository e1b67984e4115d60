"""How far one request's body goes in the bytes that came; its parser is elsewhere."""

import re

from router.wire.head import END, bad_request

_OVERLAP = len(END) - 1
_SPARE_BYTES = 64 << 10
_PART_BYTES, _PART_CHUNKS = 256 << 10, 1024
"""Of one part: about a millisecond of the parser's work."""
_MAX_LINE_BYTES = 4 << 10
_SIZE = re.compile(rb"[0-9a-fA-F]*")


class Framing:
    """Of a body of `length` bytes, or of a chunked one (None)."""

    def __init__(self, length: int | None) -> None:
        self._left = length
        self._num_taken = 0
        self._line = b""  # what came of a chunk's size line
        self._chunk_left = 0  # of its data and their CRLF
        self._tail: bytes | None = None  # of what follows the last chunk's size
        self.num_body_bytes = 0
        """The parser's count of those taken that were body."""

    def take_part(self, unread: bytearray) -> bytearray:
        """Removes and returns bytes of this message, and never one of the next: of a chunked body
        none beyond an empty line after the last chunk. ApiError 400 for an endless size line."""
        most = min(len(unread), _PART_BYTES)
        num_bytes = self._follow_chunks(unread, most) if self._left is None else self._left
        part = unread[: min(num_bytes, most)]
        del unread[: len(part)]
        self._num_taken += len(part)
        if self._left is not None:
            self._left -= len(part)
        return part

    def check(self) -> None:
        """Chunk sizes, extensions and trailers cost work too. ApiError 400 when they weigh more
        than the body."""
        if self._num_taken > 2 * self.num_body_bytes + _SPARE_BYTES and self._left is None:
            raise bad_request("more chunk sizes, extensions and trailers than body")

    def _follow_chunks(self, unread: bytearray, most: int) -> int:
        at, num_chunks = 0, 0
        while at < most and num_chunks < _PART_CHUNKS:
            if self._tail is not None:
                return at + self._to_empty_line(unread[at:most], self._tail)
            if self._chunk_left:
                skipped = min(self._chunk_left, most - at)
                self._chunk_left -= skipped
                at += skipped
            else:
                at = self._read_size(unread, at, most)
                num_chunks += 1
        return at

    def _read_size(self, unread: bytearray, at: int, most: int) -> int:
        """Where its line ends. What is no size the parser refuses; it must not hide an end."""
        end = unread.find(b"\n", at, most) + 1
        self._line += unread[at : end or most]
        if len(self._line) > _MAX_LINE_BYTES:
            raise bad_request(f"a chunk's size and extensions: at most {_MAX_LINE_BYTES} bytes")
        if not end:
            return most
        digits = _SIZE.match(self._line)
        size = int(digits[0] or b"0", 16) if digits else 0
        self._line = b""
        if size:
            self._chunk_left = size + len(b"\r\n")
        else:
            self._tail = b"\r\n"
        return end

    def _to_empty_line(self, part: bytearray, tail: bytes) -> int:
        end = (tail + part).find(END)
        self._tail = (tail + part)[-_OVERLAP:]
        return len(part) if end < 0 else end + len(END) - len(tail)
