"""One request and its answer on a connection: uvicorn's, with HTTP/1.0 in mind, and bodies that
are not there yet."""

import re
import secrets
from collections.abc import Coroutine, Iterable
from typing import Any, cast

from uvicorn._types import ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from router.anthropic.errors import id_headers, show_error_for
from router.api.errors import ApiError
from router.api.paths import plain_path

_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([!-~]{1,128})[ \t]*\r\n", re.IGNORECASE)
_PATH = re.compile(rb"[^ \r\n]+ (?:https?://[^/?# ]*)?(/[!-~]*)", re.IGNORECASE)
_NAME = re.compile(rb"\r\n([^:\r\n]+):")


class Cycle(RequestResponseCycle):
    _until_close = False

    def send(self, message: ASGISendEvent) -> Coroutine[Any, Any, None]:
        """No coroutine of its own: this is called for every token."""
        if not self.response_started:
            self._begin(cast(HTTPResponseStartEvent, message))
        elif self._until_close:
            body = cast(HTTPResponseBodyEvent, message).get("body", b"")
            self.expected_content_length = len(body)
        return super().send(message)

    def _begin(self, message: HTTPResponseStartEvent) -> None:
        if self.more_body:
            self.keep_alive = False  # where the next request begins is not known
        has_length = any(name == b"content-length" for name, _ in message.get("headers", ()))
        if self.scope["http_version"] == "1.0" and not has_length:  # it knows no chunks
            self._until_close, self.chunked_encoding = True, False


def refusal_bytes(error: ApiError, more: Iterable[tuple[bytes, bytes]], head: bytes) -> bytes:
    """The answer to what never becomes a request: it closes. `more` are headers; `head` is what
    there is of the request's, which may name it and say whose client this is."""
    given, path = _REQUEST_ID.search(head), _PATH.match(head)
    names = {name.lower() for name in _NAME.findall(head)}
    target = plain_path(path[1].partition(b"?")[0].decode()) if path else ""
    response = error.response(show_error_for(target, names))
    response.headers["connection"] = "close"
    ident = given[1].decode() if given else secrets.token_hex(16)
    response.headers.update(dict.fromkeys(id_headers(target, names), ident))
    headers = [*more, *response.raw_headers]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, bytes(response.body))
