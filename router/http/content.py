"""What a request's body says it is: its type and its compression. Others are refused with 415."""

import zlib
from collections.abc import Iterator

from router.api.errors import ApiError, bad_field

_PIECE_BYTES = 256 << 10
_MAX_MEMBERS = 1024
"""Of one gzip stream. Each costs work, and may hold nothing."""
_TYPES = (b"", b"application/json", b"application/x-www-form-urlencoded")
"""Besides JSON what `curl -d` says when it is told nothing, and nothing."""
_CHARSETS = (b"utf-8", b"utf8", b"us-ascii")


def check_content_type(value: bytes) -> None:
    """`text/plain` is what any web page may send to a server on its reader's machine."""
    essence, *parameters = (part.strip().lower() for part in value.split(b";"))
    is_json = essence.startswith(b"application/") and essence.endswith(b"+json")
    if not is_json and essence not in _TYPES:
        raise _unsupported("content-type", "must be application/json")
    for parameter in parameters:
        name, _, charset = parameter.partition(b"=")
        if name.strip() == b"charset" and charset.strip(b' "') not in _CHARSETS:
            raise _unsupported("content-type", "charset must be utf-8")


class Decoder:
    """Of one body, by its `Content-Encoding`: a piece in, small pieces out, so that whoever counts
    them can stop at any size. Raises ApiError 415, and 400 for what is no such stream."""

    def __init__(self, coding: bytes) -> None:
        self._coding = coding.strip().lower()
        if self._coding not in (b"", b"identity", b"gzip", b"x-gzip", b"deflate"):
            raise _unsupported("content-encoding", "must be gzip, deflate or none")
        self._inflate: zlib._Decompress | None = None
        self._num_members = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._coding in (b"", b"identity") or not data:
            yield data
            return
        while data:
            if self._inflate is None or self._inflate.eof:
                self._inflate = self._next_member(data)
            try:
                piece = self._inflate.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise self._broken() from error
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            yield piece

    def check_end(self) -> None:
        if self._inflate is not None and not self._inflate.eof:
            raise self._broken()

    def _next_member(self, data: bytes) -> "zlib._Decompress":
        """gzip may be several, one after another (RFC 1952); deflate is one."""
        self._num_members += 1
        if self._num_members > (1 if self._coding == b"deflate" else _MAX_MEMBERS):
            raise self._broken()
        if self._coding == b"deflate" and data[0] & 15 != zlib.DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS)  # without its header, as some send it
        return zlib.decompressobj(zlib.MAX_WBITS | 32)

    def _broken(self) -> ApiError:
        return bad_field("content-encoding", f"the body is no whole {self._coding.decode()} stream")


def _unsupported(header: str, rule: str) -> ApiError:
    return ApiError(415, f"{header}: {rule}", code="unsupported_media_type", param=header)
