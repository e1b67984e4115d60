"""The head of an HTTP/1 request: its limits, and the rules of RFC 9110 and 9112 that a proxy and
this server must read alike.

Pure: bytes in, a head that is safe to parse or a refusal out. Stricter than the RFC where two
readers could disagree about where a request ends: no bare LF, no folded line, no second length.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from router.api.errors import ApiError
from router.wire.limits import HeadLimits

END = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rb"(%b) ([!-~]+) HTTP/(\d\.\d)" % _TOKEN)
_HEADER = re.compile(rb"(%b):([\t -~\x80-\xff]*)" % _TOKEN)
_METHOD_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:\d*)?")
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
_SINGLE = (b"content-type", b"content-encoding", b"authorization", b"x-api-key", b"origin")
"""Headers that decide what is done and for whom, of which readers take the first or the last."""
_OFFERS = frozenset({b"upgrade", b"http2-settings"})
_MAX_LENGTH_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    raw: bytes
    """What the parser gets: without offers to speak another protocol; an absolute target's host
    instead of `Host` (RFC 9112, 3.2.2)."""
    version: str
    path: bytes
    """As sent, without the query; `*` of OPTIONS alone."""
    query: bytes
    length: int
    """Bytes of the body; 0 when it is chunked."""
    chunked: bool


def check_beginning(head: bytes | bytearray, limits: HeadLimits, *, since: int) -> None:
    """Of a head that has not ended: nothing is waited for that would be refused. What lies before
    `since` was checked before. Raises ApiError."""
    if head and not _METHOD_START.match(head):
        raise bad_request("does not start with a method; this port speaks HTTP/1.1 without TLS")
    if _BARE_LF.search(head, max(0, since - 1)):
        raise bad_request("its lines must end with CR LF")
    if len(head) > limits.max_target_bytes and b"\r\n" not in head[: limits.max_target_bytes + 64]:
        raise _target_too_long(limits)
    if len(head) > limits.max_bytes:
        raise _head_too_large(limits)


def read_head(raw: bytes, limits: HeadLimits) -> Head:
    """`raw` ends with its empty line. Raises ApiError 400, 413, 414, 417, 431, 501 or 505."""
    check_beginning(raw, limits, since=0)
    first, *lines = raw[: -len(END)].split(b"\r\n")
    if len(lines) > limits.max_headers:
        raise _head_too_large(limits)
    method, target, version = _request_line(first, limits)
    headers = [_header(line) for line in lines]
    named = _Named(headers)
    _check_single(named, version)
    length, chunked = _framing(named, version)
    _check_expectation(named)
    path, query = _path_and_query(target, method)
    kept = [
        line.rstrip(b" \t")  # the parser leaves spaces after a value (RFC 9112, 5.1) in it
        for line, (name, _) in zip(lines, headers, strict=True)
        if name not in _OFFERS
    ]
    if len(kept) < len(lines) or b"upgrade" in named.of(b"connection", b"").lower():
        kept = [_without_offer(line) for line in kept]
    if absolute := _ABSOLUTE.match(target):
        others = [line for line in kept if line[:5].lower() != b"host:"]
        kept = [b"Host: " + absolute[1], *others]
    return Head(
        raw=b"\r\n".join([first, *kept]) + END,
        version=version.decode(),
        path=path,
        query=query,
        length=length,
        chunked=chunked,
    )


def bad_request(why: str) -> ApiError:
    return ApiError(400, f"HTTP request: {why}", code="bad_http")


class _Named:
    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._headers = headers

    def all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self._headers if given == name]

    def of(self, name: bytes, default: bytes) -> bytes:
        """All values of a header that is a list."""
        return b", ".join(self.all(name)) or default


def _request_line(line: bytes, limits: HeadLimits) -> tuple[bytes, bytes, bytes]:
    if len(line) > limits.max_target_bytes + 64:
        raise _target_too_long(limits)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise bad_request("its first line must be `METHOD /path HTTP/1.1`, in ASCII")
    method, target, version = match.groups()
    if len(target) > limits.max_target_bytes:
        raise _target_too_long(limits)
    if version not in (b"1.0", b"1.1"):
        raise ApiError(505, "HTTP version: must be 1.1 or 1.0", code="http_version")
    if method == b"CONNECT":
        raise ApiError(501, "CONNECT: this server is no proxy", code="method_unknown")
    return method, target, version


def _header(line: bytes) -> tuple[bytes, bytes]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise bad_request("each header must be one line, `Name: value`, without control characters")
    return match[1].lower(), match[2].strip(b" \t")


def _check_single(named: _Named, version: bytes) -> None:
    hosts = named.all(b"host")
    if len(hosts) > 1 or (version == b"1.1" and not hosts):
        raise bad_request("must have one Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise bad_request("its Host header must be a host, or a host and a port")
    for name in _SINGLE:
        if len(set(named.all(name))) > 1:
            raise bad_request(f"must not have two different {name.decode()} headers")


def _framing(named: _Named, version: bytes) -> tuple[int, bool]:
    lengths, codings = named.all(b"content-length"), named.all(b"transfer-encoding")
    if codings and lengths:
        raise bad_request("must not have both Content-Length and Transfer-Encoding")
    if codings:
        if version == b"1.0":
            raise bad_request("HTTP/1.0 has no Transfer-Encoding")
        if [value.lower() for value in codings] != [b"chunked"]:
            raise ApiError(501, "Transfer-Encoding: must be chunked", code="transfer_encoding")
        return 0, True
    if len(lengths) > 1:
        raise bad_request("must not have two Content-Length headers")
    if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
        raise bad_request("its Content-Length must be a number of bytes")
    if lengths and len(lengths[0].lstrip(b"0")) > _MAX_LENGTH_DIGITS:
        raise ApiError(413, "request body: too large", code="body_too_large")
    return int(lengths[0]) if lengths else 0, False


def _check_expectation(named: _Named) -> None:
    expected = named.of(b"expect", b"100-continue").lower()
    if expected != b"100-continue":
        raise ApiError(417, "Expect: only 100-continue is known", code="expectation_failed")


def _path_and_query(target: bytes, method: bytes) -> tuple[bytes, bytes]:
    if target == b"*" and method == b"OPTIONS":
        return target, b""
    absolute = _ABSOLUTE.match(target)
    if absolute and not _HOST.fullmatch(absolute[1]):
        raise bad_request("its target must name a host, or a host and a port")
    rest = target[absolute.end() :] if absolute else target
    path, _, query = rest.partition(b"?")
    if absolute and not path:
        path = b"/"
    if not path.startswith(b"/") or b"#" in target:
        raise bad_request("its target must be a path, e.g. /v1/models")
    return path, query


def _without_offer(line: bytes) -> bytes:
    name, _, value = line.partition(b":")
    if name.lower() != b"connection":
        return line
    tokens = [token.strip() for token in value.split(b",")]
    return name + b": " + b", ".join(token for token in tokens if token.lower() not in _OFFERS)


def _target_too_long(limits: HeadLimits) -> ApiError:
    return ApiError(414, f"URL: at most {limits.max_target_bytes} bytes", code="url_too_long")


def _head_too_large(limits: HeadLimits) -> ApiError:
    rule = f"at most {limits.max_headers} headers of {limits.max_bytes} bytes in all"
    return ApiError(431, f"HTTP headers: {rule}", code="headers_too_large")
