"""The answer to what never becomes a request, as bytes."""

import secrets
from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from router.openai.errors import ApiError


def refusal_bytes(error: ApiError, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """It closes the connection, and has a request id of its own."""
    response = error.response()
    response.headers["connection"] = "close"
    response.headers["x-request-id"] = secrets.token_hex(16)
    headers = [*default_headers, *response.raw_headers]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, bytes(response.body))
