"""One client's connection: uvicorn's httptools protocol, with checks before its parser.

The parser is fed one message at a time, and only heads that passed `router.wire.head`. So an offer
to upgrade costs no body, a pipelined request waits as bytes, and what is refused is answered in
JSON. Every wait for the client has a deadline, that for its body in `router.http.exchange`.

Leans on names of uvicorn 0.54 that it does not promise; the tests in tests/api speak raw bytes.
"""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protocol.process.metrics import RouterMetrics
from router.api.errors import ApiError
from router.wire.cycle import Cycle, refusal_bytes
from router.wire.flow import BoundedFlow
from router.wire.framing import Framing
from router.wire.head import END, Head, bad_request, check_beginning, read_head
from router.wire.limits import ConnectionLimits
from router.wire.open_connections import OpenConnections
from router.wire.reading import HalfClosedWriter, ReadingWatch

_LINGER_BYTES = 32 << 20
"""More than any body that a client may have begun to send before it reads."""


class Connection(HttpToolsProtocol):
    def __init__(
        self,
        *,
        others: OpenConnections,
        limits: ConnectionLimits,
        metrics: RouterMetrics,
        **uvicorn: Any,
    ) -> None:
        super().__init__(**uvicorn)
        self._others = others
        self._limits = limits
        self._metrics = metrics
        self.timeout_keep_alive = limits.keep_alive_s  # type: ignore[assignment]
        self._unread = bytearray()  # one object for good: the flow looks at it
        self._has_turn = False  # to go on with what is unread
        self._searched = 0
        self._raw_head = b""  # of that message or the last, good or bad
        self._head: Head | None = None  # of the message being read
        self._framing = Framing(0)
        self._lingering: int | None = None  # bytes that may still be dropped
        self._deadline: asyncio.TimerHandle | None = None
        self._wire: Any = None
        self._is_half_closed = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = BoundedFlow(transport, unread=self._unread)
        timeout_s = self._limits.write_timeout_s
        self._reading = ReadingWatch(transport, self.loop, timeout_s=timeout_s)
        self._wire = SimpleNamespace(
            write=transport.write,
            get_write_buffer_size=transport.get_write_buffer_size,
            is_closing=transport.is_closing,
            close=self._finish,
            descriptor=_lendable(transport),
        )
        if self._others.admit(self):
            self._arm(self._patience_s(self._limits.head_timeout_s), self._give_up_head)
        else:
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_socket_back()
        self._others.forget(self)
        self._disarm()
        self._reading.end()
        self._unset_keepalive_if_required()
        self._unread.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.transport.abort()
            return
        self._unread += data
        if not self._has_turn:
            self._advance()
        self._regulate()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to stay. A client may close its side and wait for its answer; one that is gone
        looks the same until we write to it."""
        while self._has_turn and self._head is not None:
            self._use_turn()
        if not self._is_answering() or self._head is not None:
            return False
        self._take_socket_back()
        limits, was_last = self._limits, not self.cycle.keep_alive
        self._is_half_closed = True
        self.cycle.keep_alive = bool(self._unread)
        writer = HalfClosedWriter(self.transport)
        self._wire.write = writer.write
        after_s = limits.last_request_s if was_last else limits.half_closed_s
        self._arm(after_s, writer.give_up)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading.begin()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.end()

    # What the parser calls.

    def on_message_begin(self) -> None:
        self.headers = []
        self.expect_100_continue = False

    def on_url(self, url: bytes) -> None:
        """Known from the head."""

    def on_headers_complete(self) -> None:
        head = self._head
        assert head is not None
        path = head.path.decode("ascii")
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": head.version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": self.parser.get_method().decode("ascii"),
            "root_path": self.root_path,
            "path": unquote(path) if "%" in path else path,
            "raw_path": head.path,
            "query_string": head.query,
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        self.headers = []  # a trailer is no header
        self._answer_request(is_old=head.version == "1.0")

    def on_body(self, body: bytes) -> None:
        self._framing.num_body_bytes += len(body)
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._head = None
        self._others.note_request(self)
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    # What a cycle, uvicorn's timer and the open connections call.

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._others.note_answer(self)
        if self._lingering is not None or self.transport.is_closing():
            return
        self.flow.resume_reading()
        silence_s = self._patience_s(self._limits.keep_alive_s)
        keep = self.loop.call_later(silence_s, self.timeout_keep_alive_handler)
        self.timeout_keep_alive_task = keep
        if self._unread:
            self._take_turn()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def make_room(self) -> None:
        self._turn_away(silently=not self._unread and self._head is None)

    def note_drain(self) -> None:
        if self._is_silent():
            self._unset_keepalive_if_required()
            self._arm(self._limits.last_idle_s, self._give_up_head)

    def shutdown(self) -> None:
        """Of uvicorn, when nobody else may connect: who is here ends by itself."""

    # What is left is ours.

    def _answer_request(self, *, is_old: bool) -> None:
        is_last = self._is_half_closed and not self._unread
        self.cycle = Cycle(
            scope=self.scope,
            transport=self._wire,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and not is_old,
            keep_alive=not is_old and self.parser.should_keep_alive() and not is_last,
            on_response=self.on_response_complete,
        )
        self.cycle.is_draining = lambda: self._others.is_draining
        task = self.loop.create_task(self.cycle.run_asgi(self.app), name="request")
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)  # uvicorn's server waits for them when it drains

    def _take_socket_back(self) -> None:
        """For good: the connection is about to be more than its answer's."""
        self._wire.descriptor = -1
        if isinstance(self.cycle, Cycle):
            self.cycle.take_socket_back()

    def _patience_s(self, usual_s: float) -> float:
        """With a client that has sent nothing of its next request."""
        return min(usual_s, self._limits.last_idle_s) if self._others.is_draining else usual_s

    def _is_silent(self) -> bool:
        """Between requests, with nothing of the next."""
        return not (self._is_answering() or self._unread or self._head is not None)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _take_turn(self) -> None:
        if not self._has_turn:
            self._has_turn = True
            self.loop.call_soon(self._use_turn)

    def _use_turn(self) -> None:
        self._has_turn = False
        self._advance()
        self._regulate()

    def _regulate(self) -> None:
        """Reads on as soon as little is unread, here and in the request's body."""
        if self.transport.is_closing():
            return
        if len(self._unread) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        elif self.cycle is None or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _advance(self) -> None:
        """Feeds the parser until the client, or the request being answered, must go on first, or
        others must have their turn."""
        try:
            while self._unread and self._lingering is None and not self.transport.is_closing():
                if self._head is not None:
                    self._take_body()
                    if self._unread:
                        self._take_turn()
                        return
                elif self._is_answering():
                    return
                elif not self._take_head():
                    if self._is_half_closed:
                        self._close()
                    return
        except ApiError as error:
            self._refuse(error)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(ApiError(501, "HTTP method: unknown", code="method_unknown"))
        except httptools.HttpParserError as error:
            self._refuse(bad_request(str(error)))

    def _take_head(self) -> bool:
        while self._unread.startswith(b"\r\n"):  # some clients end a body with one too many
            del self._unread[:2]
        if not self._unread:
            return False
        self._unset_keepalive_if_required()
        self._raw_head = b""
        end = self._unread.find(END, max(0, self._searched - len(END) + 1))
        if end < 0:
            check_beginning(self._unread, self._limits.head, since=self._searched)
            self._searched = len(self._unread)
            if self._deadline is None:
                self._arm(self._limits.head_timeout_s, self._give_up_head)
            return False
        self._raw_head = raw = bytes(self._unread[: end + len(END)])
        del self._unread[: end + len(END)]
        self._searched = 0
        head = read_head(raw, self._limits.head)
        if not self._others.may_ask(self, head.path):
            raise _too_many()
        self._head = head
        self._disarm()
        self._framing = Framing(None if head.chunked else head.length)
        self.parser.feed_data(head.raw)
        return True

    def _take_body(self) -> None:
        """Never more than this message's: what follows it has a head of its own to be checked."""
        part = self._framing.take_part(self._unread)
        self.parser.feed_data(part)
        self._framing.check()

    def _refuse(self, error: ApiError) -> None:
        """Answers what never becomes a request, or one in the middle of its body, and closes."""
        self._take_socket_back()
        if self._is_answering():
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        self.transport.write(self._answer(error))
        self._others.note_answer(self)
        self._linger()

    def _turn_away(self, *, silently: bool = False) -> None:
        self._take_socket_back()
        if not silently and self._lingering is None:
            self.transport.write(self._answer(_too_many()))
        self.transport.close()

    def _answer(self, error: ApiError) -> bytes:
        self._metrics.requests.labels("other", str(error.status)).inc()
        head = self._raw_head or bytes(self._unread[: self._limits.head.max_bytes])
        return refusal_bytes(error, self.server_state.default_headers, head)

    def _finish(self) -> None:
        """Closes after the last answer; not on a client that still sends, or it may not get it."""
        if self._head is not None or self._unread:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        self._unread.clear()
        self._lingering = _LINGER_BYTES
        self._arm(self._limits.linger_s, self.transport.abort)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close(self) -> None:
        self._reading.begin()
        self.transport.close()

    def _give_up_head(self) -> None:
        if self._unread:
            self._refuse(ApiError(408, "HTTP request: its head never ended", code="head_timeout"))
        else:
            self.transport.close()

    def _arm(self, after_s: float, what: Callable[[], None]) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(after_s, what)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _lendable(transport: asyncio.Transport) -> int:
    """The descriptor of its socket; -1 if what is written to it is not what is sent."""
    found = transport.get_extra_info("socket")
    is_encrypted = transport.get_extra_info("sslcontext") is not None
    return -1 if found is None or is_encrypted else int(found.fileno())


def _too_many() -> ApiError:
    return ApiError(503, "too many connections", code="overloaded", retry_after_s=1.0)
