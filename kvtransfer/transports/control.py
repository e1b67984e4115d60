"""The control link: small typed messages over ZeroMQ, and the poller both ends sleep in.

The only file of `kvtransfer` that knows zmq. Messages of one link come in order; a full queue
or a vanished peer is an answer (`False`, `PeerLost`), never a block. Every object here belongs
to one thread, except `Waker.wake`.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address

import zmq
from zmq.utils.monitor import parse_monitor_message

from kvtransfer.messages import MAX_CONTROL_BYTES, ToSink, ToSource, to_sink, to_source
from kvtransfer.transports.polling import FdPoller
from protocol.errors import PeerLost, TransferError, WireError
from protocol.process.listening import bracketed, unlistenable

_QUEUE_MESSAGES = 4_096
"""Far more than any honest link has in flight: a few messages a fetch."""
_MAX_SOCKETS = 16_383
"""Of a sink: three for each source."""
_LINGER_MS = 100
_TURN_MESSAGES = 256
_PING_MS = 2_000
_SILENCE_MS = 6_000
"""A host that answers no ping for this long is gone; nothing else tells of an idle link's end
when the other host vanished without a word."""
_GONE = (
    zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)  # fmt: skip
Identity = bytes


class Waker:
    """Makes a thread that sleeps in its poller look up. `wake` may be called from anywhere."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def wake(self) -> None:
        if self._fd >= 0:
            os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class ControlEnd:
    """One end of control links: what `Poller` knows it by."""

    _socket: "zmq.Socket[bytes]"

    @property
    def sockets(self) -> tuple["zmq.Socket[bytes]", ...]:
        return (self._socket,)

    @property
    def number(self) -> int:
        """What `Poller.wait` calls it: below all descriptors."""
        return -1 - int(self._socket.FD)

    def _heard(self) -> Iterator[list[bytes]]:
        """The frames of what has come, at most a turn's worth."""
        with suppress(zmq.Again):
            for _ in range(_TURN_MESSAGES):
                yield self._socket.recv_multipart(zmq.NOBLOCK)


class Poller:
    """Sleeps until a control socket or a descriptor has something, or the time is over."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._spinner = FdPoller()
        """The descriptors alone: a look costs a tenth of the poller's."""
        self._owners: dict[zmq.Socket[bytes], int] = {}
        """Of control sockets: the number that stands for them."""

    def watch(self, what: ControlEnd | int, *, writable: bool = False) -> None:
        if isinstance(what, int):
            self._poller.register(what, zmq.POLLIN | (zmq.POLLOUT if writable else 0))
            self._forget_spun(what)
            self._spinner.watch(what)
            return
        for sock in what.sockets:
            self._poller.register(sock, zmq.POLLIN)
            self._owners[sock] = what.number

    def forget(self, what: ControlEnd | int) -> None:
        for sock in (what,) if isinstance(what, int) else what.sockets:
            with suppress(KeyError):
                self._poller.unregister(sock)
            if isinstance(sock, int):
                self._forget_spun(sock)
            else:
                self._owners.pop(sock, None)

    def spin(self) -> set[int]:
        """Of the descriptors, those that have something now; says nothing of control sockets."""
        return set(self._spinner.ready())

    def close(self) -> None:
        self._spinner.close()

    def wait(self, timeout_s: float) -> set[int]:
        """Descriptors that have something, and numbers of control sockets that have."""
        ready = self._poller.poll(int(timeout_s * 1000 + 0.999))
        return {sock if isinstance(sock, int) else self._owners[sock] for sock, _ in ready}

    def _forget_spun(self, fd: int) -> None:
        """It may never have been watched, or be closed and given to another since."""
        with suppress(KeyError, OSError):
            self._spinner.forget(fd)


class ControlServer(ControlEnd):
    """The source's end: one socket for all its sinks."""

    def __init__(self, host: str, port: int = 0) -> None:
        """Listen on `port` of `host`, 0: a free one. Raises TransferError when it cannot."""
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._socket = self._context.socket(zmq.ROUTER)
        address = f"tcp://{bracketed(host)}"
        _limit(self._socket, address)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            self._socket.bind(f"{address}:{port or '*'}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise TransferError(str(unlistenable("kv_port", host, port, error))) from error
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def receive(self) -> Iterator[tuple[Identity, ToSource | WireError]]:
        """What has come; what is not a message comes as its error."""
        for frames in self._heard():
            try:
                if len(frames) != 2:
                    raise WireError(f"{len(frames)} frames instead of 2")
                yield frames[0], to_source.decode(frames[1])
            except WireError as error:
                yield frames[0], error

    def send(self, identity: Identity, message: ToSink) -> bool:
        """False: that sink is gone, or has not read for thousands of messages."""
        try:
            self._socket.send_multipart((identity, to_sink.encode(message)), zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def close(self) -> None:
        self._context.destroy(linger=_LINGER_MS)


class ControlContext:
    """The zmq threads all links of one sink share."""

    def __init__(self) -> None:
        self._context = zmq.Context(io_threads=1)

    def connect(self, address: str) -> "ControlLink":
        """Raises WireError for what is no address, TransferError without room for a socket. The
        host is no name: it would be looked up on the thread of all links."""
        host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
        try:
            ip_address(host)
        except ValueError as error:
            why = f"control address {address!r}: no IP address: let the source advertise one"
            raise WireError(why) from error
        try:
            sock = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise TransferError(f"no socket for a control link: {error}") from error
        return ControlLink(sock, address)

    def close(self) -> None:
        self._context.destroy(linger=_LINGER_MS)


class ControlLink(ControlEnd):
    """The sink's end of one link. Never reconnects: another incarnation may listen there."""

    def __init__(self, sock: "zmq.Socket[bytes]", address: str) -> None:
        self._socket = sock
        _limit(sock, address)
        sock.setsockopt(zmq.HANDSHAKE_IVL, 2_000)
        try:
            self._monitor = sock.get_monitor_socket(_GONE)
        except zmq.ZMQError as error:
            sock.close(linger=0)
            raise TransferError(f"no socket for a control link: {error}") from error
        try:
            sock.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise WireError(f"control address {address!r}: {error}") from error

    @property
    def sockets(self) -> tuple["zmq.Socket[bytes]", ...]:
        return (self._socket, self._monitor)

    def receive(self) -> Iterator[ToSink]:
        """What has come. Raises WireError for what is not a message, PeerLost at the end."""
        for frames in self._heard():
            if len(frames) != 1:
                raise WireError(f"{len(frames)} frames instead of 1")
            yield to_sink.decode(frames[0])
        self._look_for_the_end()

    def send(self, message: ToSource) -> None:
        """Raises PeerLost when thousands of messages wait already."""
        try:
            self._socket.send(to_source.encode(message), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise PeerLost(f"control link: {error}") from error

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=_LINGER_MS)

    def _look_for_the_end(self) -> None:
        try:
            frames = self._monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        event = zmq.Event(parse_monitor_message(frames)["event"])
        raise PeerLost(f"control link: {event!r}")


def _limit(sock: "zmq.Socket[bytes]", address: str) -> None:
    sock.setsockopt(zmq.IPV6, "[" in address)  # else a name may mean one that nobody listens on
    sock.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
    sock.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES + 1)
    sock.setsockopt(zmq.LINGER, _LINGER_MS)
    sock.setsockopt(zmq.HEARTBEAT_IVL, _PING_MS)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
