"""Someone between a sink and a source who reads every word of both and may change it.

Tickets that went through `lead` are answered here: control messages are passed on one by one, data
streams word by word, with the bytes of blocks piece by piece; descriptors ride along. What is done
to each is the harm's choice, and seals are made good again. One thread, ended by `close`.
"""

import select
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
import zmq

from kvtransfer.messages import Opened, PlaneAddress, to_sink
from kvtransfer.transports.tcp.frames import HEADER_BYTES, seal_head, unpack_header
from protocol.errors import WireError
from protocol.messages import Ticket

Way = Literal["to sink", "to source"]
_READ_BYTES = 64 << 10
_LENGTH = struct.Struct("<I")
_SEND_S = 5.0
_MAX_FDS = 4


class Harm(Protocol):
    """What is done to what passes."""

    def message(self, way: Way, packed: bytes) -> list[bytes]:
        """The control messages to pass on instead of this one."""

    def word(self, way: Way, packed: bytes) -> list[bytes]:
        """The words to pass on instead of this one, on a stream."""

    def piece(self, way: Way, piece: bytes) -> bytes | None:
        """The bytes to pass on instead of these; None ends the stream."""


@dataclass(eq=False)
class _Flow:
    """One way of one stream: words, or after the first of them, frames of words and bodies."""

    way: Way
    source: socket.socket
    target: socket.socket
    framed: bool
    num_words: int = 0
    body_bytes: int = 0
    """Still to come of the present frame."""
    waiting: bytearray = field(default_factory=bytearray)
    fds: list[int] = field(default_factory=list)


class Middle:
    def __init__(self, harm: Harm) -> None:
        self._harm = harm
        self._context = zmq.Context()
        self._door: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._port = self._door.bind_to_random_port("tcp://127.0.0.1")
        self._links: dict[bytes, zmq.Socket[bytes]] = {}
        self._listeners: dict[int, tuple[socket.socket, PlaneAddress]] = {}
        self._flows: dict[int, _Flow] = {}
        self._closing = threading.Event()
        self._source = ""
        self._thread = threading.Thread(target=self._run, name="middle")

    def lead(self, ticket: Ticket) -> Ticket:
        """The ticket as it is to be fetched with. All must be of one source."""
        if not self._source:
            self._source = ticket.address
            self._thread.start()
        return msgspec.structs.replace(ticket, address=f"tcp://127.0.0.1:{self._port}")

    def close(self) -> None:
        self._closing.set()
        if self._source:
            self._thread.join()
        for flow in list(self._flows.values()):
            self._end(flow)
        for listener, _ in self._listeners.values():
            listener.close()
        self._context.destroy(linger=0)

    def break_streams(self) -> None:
        """Every data stream ends now, without a word; what dials again is served again."""
        for flow in list(self._flows.values()):
            with suppress(OSError):
                flow.source.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while not self._closing.is_set():
            control = [self._door.FD, *(link.FD for link in self._links.values())]
            fds = [*control, *self._listeners, *self._flows]
            ready, _, _ = select.select(fds, [], [], 0.005)
            self._pass_messages()
            for fd in ready:
                if fd in self._listeners:
                    self._admit(*self._listeners[fd])
                elif fd in self._flows:
                    self._pass_bytes(self._flows[fd])

    # -- control --------------------------------------------------------------------------

    def _pass_messages(self) -> None:
        with suppress(zmq.Again):
            while True:
                identity, *frames = self._door.recv_multipart(zmq.NOBLOCK)
                for packed in self._harm.message("to source", frames[-1]):
                    self._link(identity).send(packed, zmq.NOBLOCK)
        for identity, link in self._links.items():
            with suppress(zmq.Again):
                while True:
                    packed = self._with_our_planes(link.recv(zmq.NOBLOCK))
                    for spoilt in self._harm.message("to sink", packed):
                        self._door.send_multipart((identity, spoilt), zmq.NOBLOCK)

    def _link(self, identity: bytes) -> "zmq.Socket[bytes]":
        if identity not in self._links:
            link: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
            link.connect(self._source)
            self._links[identity] = link
        return self._links[identity]

    def _with_our_planes(self, packed: bytes) -> bytes:
        try:
            message = to_sink.decode(packed)
        except WireError:
            return packed
        if not isinstance(message, Opened):
            return packed
        ours = tuple(PlaneAddress(plane.transport, self._listen(plane)) for plane in message.planes)
        return to_sink.encode(msgspec.structs.replace(message, planes=ours))

    # -- streams --------------------------------------------------------------------------

    def _listen(self, plane: PlaneAddress) -> str:
        if plane.transport == "tcp":
            sock = socket.create_server(("127.0.0.1", 0))
            address = f"127.0.0.1:{sock.getsockname()[1]}"
        else:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            address = f"middle-{id(self):x}-{len(self._listeners)}"
            sock.bind("\0" + address)
            sock.listen(16)
        self._listeners[sock.fileno()] = (sock, plane)
        return address

    def _admit(self, listener: socket.socket, plane: PlaneAddress) -> None:
        sink, _ = listener.accept()
        source = socket.socket(sink.family, socket.SOCK_STREAM)
        for sock in (sink, source):
            sock.settimeout(_SEND_S)
        try:
            host, _, port = plane.address.rpartition(":")
            source.connect((host, int(port)) if host else "\0" + plane.address)
        except OSError:
            sink.close()
            source.close()
            return
        framed = plane.transport == "tcp"
        self._flows[sink.fileno()] = _Flow("to source", sink, source, framed=False)
        self._flows[source.fileno()] = _Flow("to sink", source, sink, framed)

    def _pass_bytes(self, flow: _Flow) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(flow.source, _READ_BYTES, _MAX_FDS)
            flow.fds += fds
            if not data:
                raise ConnectionError
            for spoilt in self._spoil(flow, data):
                self._send(flow, spoilt)
        except OSError:
            self._end(flow)

    def _spoil(self, flow: _Flow, data: bytes) -> list[bytes]:
        flow.waiting += data
        passed: list[bytes] = []
        while flow.waiting:
            framed = flow.framed and flow.num_words
            taken = self._take_frame(flow) if framed else self._take_word(flow)
            if taken is None:
                break
            passed += taken
        return passed

    def _take_word(self, flow: _Flow) -> list[bytes] | None:
        word = _take_word(flow.waiting)
        if word is None:
            return None
        flow.num_words += 1
        return [_LENGTH.pack(len(w)) + w for w in self._harm.word(flow.way, word)]

    def _take_frame(self, flow: _Flow) -> list[bytes] | None:
        """Some of a body, or a header and its word, sealed anew; None while that is not here."""
        if flow.body_bytes:
            piece = bytes(flow.waiting[: flow.body_bytes])
            del flow.waiting[: flow.body_bytes]
            flow.body_bytes -= len(piece)
            spoilt = self._harm.piece(flow.way, piece)
            if spoilt is None:
                raise ConnectionError
            return [spoilt]
        if len(flow.waiting) < HEADER_BYTES:
            return None
        header = unpack_header(bytes(flow.waiting[:HEADER_BYTES]))
        end = HEADER_BYTES + header.message_bytes
        if len(flow.waiting) < end:
            return None
        word = bytes(flow.waiting[HEADER_BYTES:end])
        del flow.waiting[:end]
        flow.body_bytes = header.body_bytes
        words = self._harm.word(flow.way, word)
        bodies = [header.body_bytes, *(0 for _ in words)]  # a word said twice has its bytes once
        return [
            seal_head(w, number=header.number, body_bytes=body)
            for w, body in zip(words, bodies, strict=False)
        ]

    def _send(self, flow: _Flow, data: bytes) -> None:
        if flow.fds and data:
            sent = socket.send_fds(flow.target, [data], flow.fds)
            for fd in flow.fds:
                socket.close(fd)
            flow.fds, data = [], data[sent:]
        flow.target.sendall(data)

    def _end(self, flow: _Flow) -> None:
        for sock in (flow.source, flow.target):
            other = self._flows.pop(sock.fileno(), None)
            for fd in other.fds if other is not None else ():
                socket.close(fd)
            sock.close()


def _take_word(waiting: bytearray) -> bytes | None:
    if len(waiting) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(waiting)
    end = _LENGTH.size + length
    if len(waiting) < end:
        return None
    word = bytes(waiting[_LENGTH.size : end])
    del waiting[:end]
    return word


class NoHarm:
    """Passes everything on as it is."""

    def message(self, way: Way, packed: bytes) -> list[bytes]:
        return [packed]

    def word(self, way: Way, packed: bytes) -> list[bytes]:
        return [packed]

    def piece(self, way: Way, piece: bytes) -> bytes | None:
        return piece
