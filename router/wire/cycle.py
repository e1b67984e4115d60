"""One request and its answer on a connection: uvicorn's, with HTTP/1.0 in mind, and bodies that
are not there yet."""

import re
import secrets
from collections.abc import Callable, Coroutine, Iterable
from types import SimpleNamespace
from typing import Any, cast

from uvicorn._types import ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from router.anthropic.errors import id_headers, show_error_for
from router.api.errors import ApiError
from router.api.paths import plain_path
from router.api.stream_door import EXTENSION, LentSocket

_OPEN = SimpleNamespace(write_paused=False)
_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([!-~]{1,128})[ \t]*\r\n", re.IGNORECASE)
_PATH = re.compile(rb"[^ \r\n]+ (?:https?://[^/?# ]*)?(/[!-~]*)", re.IGNORECASE)
_NAME = re.compile(rb"\r\n([^:\r\n]+):")


class Cycle(RequestResponseCycle):
    """Also a `router.api.stream_door.StreamDoor`: the answer's pieces need no coroutine each."""

    _until_close = False
    _give_back: Callable[[], None] | None = None
    """While its socket is lent."""
    is_draining: Callable[[], bool] = staticmethod(lambda: False)
    """Whether an answer that begins is its connection's last."""

    async def run_asgi(self, app: Any) -> None:
        self.scope["extensions"] = cast(Any, {EXTENSION: self})
        try:
            await super().run_asgi(app)
        finally:
            self._give_back = None
            del self.scope["extensions"]  # a circle, which would wait for the garbage collector

    def send(self, message: ASGISendEvent) -> Coroutine[Any, Any, None]:
        self.take_socket_back()
        if not self.response_started:
            self._begin(cast(HTTPResponseStartEvent, message))
            if self.flow.write_paused:
                return self._send_at_once(message)
        elif self._until_close:
            body = cast(HTTPResponseBodyEvent, message).get("body", b"")
            self.expected_content_length = len(body)
        return super().send(message)

    def write_now(self, body: bytes) -> int:
        """As of `StreamDoor`."""
        if self.disconnected or not body:
            return 0
        self.take_socket_back()
        if self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        elif not self._until_close:
            return 0  # of HEAD
        transport = self.transport
        transport.write(body)
        return transport.get_write_buffer_size()

    def lend_socket(self, give_back: Callable[[], None]) -> LentSocket | None:
        """As of `StreamDoor`. Not while anything waits in the transport: it would come later."""
        transport, descriptor = cast(Any, self.transport), cast(Any, self.transport).descriptor
        has_body = self.chunked_encoding or self._until_close
        if descriptor < 0 or self.disconnected or not self.response_started or not has_body:
            return None
        if transport.is_closing() or transport.get_write_buffer_size():
            return None
        self.take_socket_back()
        self._give_back = give_back
        return LentSocket(descriptor=descriptor, is_chunked=bool(self.chunked_encoding))

    def take_socket_back(self) -> None:
        """Idempotent."""
        if self._give_back is not None:
            give_back, self._give_back = self._give_back, None
            give_back()

    def write_rest(self, rest: bytes) -> int:
        """As of `StreamDoor`."""
        if self.disconnected:
            return 0
        self.transport.write(rest)
        return self.transport.get_write_buffer_size()

    async def _send_at_once(self, message: ASGISendEvent) -> None:
        """A head does not wait for the client to take what came before it: it is small, and a
        stream begins in the middle of a turn."""
        flow, self.flow = self.flow, cast(Any, _OPEN)
        try:
            await super().send(message)
        finally:
            self.flow = flow

    def _begin(self, message: HTTPResponseStartEvent) -> None:
        if self.more_body or self.is_draining():
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
