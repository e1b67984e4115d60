"""How far one request's body goes in the bytes that came; its parser is elsewhere."""

from router.wire.head import END, bad_request

_OVERLAP = len(END) - 1
_SPARE_BYTES = 64 << 10


class Framing:
    """Of a body of `length` bytes, or of a chunked one (None)."""

    def __init__(self, length: int | None) -> None:
        self._left = length
        self._num_taken = 0
        self._tail = b""
        self.num_body_bytes = 0
        """The parser's count of those taken that were body."""

    def take_part(self, unread: bytearray) -> bytearray:
        """Removes and returns bytes of this message, and never one of the next: of a chunked body
        to an empty line, for with one it ends. It may have others before."""
        num_bytes = self._to_empty_line(unread) if self._left is None else self._left
        part = unread[:num_bytes]
        del unread[:num_bytes]
        self._num_taken += len(part)
        if self._left is None:
            self._tail = bytes((self._tail + part[-_OVERLAP:])[-_OVERLAP:])
        else:
            self._left -= len(part)
        return part

    def check(self) -> None:
        """Chunk sizes, extensions and trailers cost work too. ApiError 400 when they weigh more
        than the body."""
        if self._num_taken > 2 * self.num_body_bytes + _SPARE_BYTES and self._left is None:
            raise bad_request("more chunk sizes, extensions and trailers than body")

    def _to_empty_line(self, unread: bytearray) -> int:
        across = (self._tail + unread[:_OVERLAP]).find(END)
        if across >= 0:
            return across + len(END) - len(self._tail)
        end = unread.find(END)
        return len(unread) if end < 0 else end + len(END)
