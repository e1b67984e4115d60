"""The answer to what never becomes a request, as bytes."""

import re
import secrets
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from router.openai.errors import ApiError

_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([!-~]{1,128})[ \t]*\r\n", re.IGNORECASE)


def refusal_bytes(error: ApiError, more: Iterable[tuple[bytes, bytes]], head: bytes) -> bytes:
    """It closes the connection; `more` are headers. `head`: of the request, which it may name."""
    given = _REQUEST_ID.search(head)
    response = error.response()
    response.headers["connection"] = "close"
    response.headers["x-request-id"] = given[1].decode() if given else secrets.token_hex(16)
    headers = [*more, *response.raw_headers]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, bytes(response.body))
