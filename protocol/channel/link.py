"""The router's end of the link to one worker."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NoReturn, Self

import zmq

from protocol.channel.reader import SocketReader
from protocol.channel.resolver import Resolver
from protocol.channel.wire import LINGER_MS, PING_S, SILENT_AFTER_S, Silence, configure
from protocol.codec import WIRE_VERSION, to_router, to_worker
from protocol.errors import PeerLost, PeerSilent, WireError
from protocol.ids import RouterId
from protocol.messages import Hello, Ping, Registration, ToRouter, ToWorker, Welcome

HANDSHAKE_S = 2.0
MAX_SOCKETS = 16_383
"""Of a router, three for each worker."""
_NO_SOCKET = "no socket for its link"


class WorkerLink:
    """`async with WorkerLink(address=..., router=...) as link` shakes hands, or raises PeerLost
    (nobody there, no socket left) or WireError (another version). Enter and leave it in the same
    task. `router` must be unlike that of any other router process, a restarted one's included.
    """

    def __init__(
        self,
        *,
        address: str,
        router: RouterId,
        silent_after_s: float = SILENT_AFTER_S,
        resolver: Resolver | None = None,
        num_links: Callable[[], int] = lambda: 1,
        version: int = WIRE_VERSION,
    ) -> None:
        """`num_links`: workers that this router hears, for them to know. `version`: of the wire,
        as the worker speaks it (`Registration.wire`)."""
        self._version = version
        self._resolver = resolver or Resolver()
        self._num_links = num_links
        self._address = address
        self._router = router
        self._silent_after_s = silent_after_s
        self._tasks = asyncio.TaskGroup()
        self._tending: asyncio.Task[None] | None = None
        self._early: deque[ToRouter] = deque()
        """What came before anybody heard."""
        self._accept: Callable[[ToRouter], None] = self._greet
        self._take_frame: Callable[[bytes], bool] | None = None
        self._is_lost = asyncio.Event()
        self._error: Exception | None = None
        """What `accept` raised."""
        self._heard = 0.0
        self._is_silent = False
        """That is why it is lost."""
        self.lost: str | None = None
        """Why the link is lost; None while it lives."""

    registration: Registration
    _welcomed: "asyncio.Future[Welcome | None]"

    async def __aenter__(self) -> Self:
        number = await self._resolver.resolve(self._address)
        self._heard = asyncio.get_running_loop().time()
        self._welcomed = asyncio.get_running_loop().create_future()
        self._open_sockets()
        await self._tasks.__aenter__()
        try:
            self._socket.setsockopt(zmq.IPV6, "[" in number)
            self._socket.connect(number)
            self._reader.start()
            self._watch.start()
            self._tending = self._tasks.create_task(self._tend(), name="link-tend")
            self.send_now(Hello(router=self._router, version=self._version))
            self.registration = await self._welcome()
        except zmq.ZMQError as error:
            await self._close()
            raise PeerLost(f"worker at {self._address}: {error}") from error
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    def _open_sockets(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)  # counts before the first one is made
        try:
            self._socket = context.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise PeerLost(f"worker at {self._address}: {_NO_SOCKET}: {error}") from error
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_CONNECT_RETRIED
        try:
            configure(self._socket)
            self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
            self._socket.setsockopt_string(zmq.IDENTITY, self._router)
            self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(events)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise PeerLost(f"worker at {self._address}: {_NO_SOCKET}: {error}") from error
        self._reader = SocketReader(self._socket, self._receive)
        self._watch = SocketReader(self._monitor, self._notice)

    def send_now(self, message: ToWorker) -> None:
        """Raises PeerLost when the link is lost. Never waits for the worker. In the event loop's
        thread only."""
        if self.lost is None:
            try:
                self._socket.send(to_worker.encode(message), zmq.NOBLOCK)
                self._reader.look_again()
                return
            except zmq.ZMQError as error:
                self._lose(f"cannot send: {error}")
        raise PeerLost(f"worker at {self._address}: {self.lost}")

    async def hear(
        self,
        accept: Callable[[ToRouter], None],
        *,
        take_frame: Callable[[bytes], bool] | None = None,
    ) -> NoReturn:
        """Calls `accept` with what the worker says, Beats included, in order, in the turn of the
        loop in which it comes. Ends by raising PeerLost, PeerSilent if it was not heard for too
        long, or what `accept` raised. Of packed messages that `take_frame` says True of `accept`
        hears nothing."""
        while self._early:
            accept(self._early.popleft())
        self._accept, self._take_frame = accept, take_frame
        try:
            await self._is_lost.wait()
        finally:
            if self._accept is accept:
                self._accept, self._take_frame = self._greet, None
        kind = PeerSilent if self._is_silent else PeerLost
        raise self._error or kind(f"worker at {self._address}: {self.lost}")

    async def _welcome(self) -> Registration:
        """What comes before it was meant for our last link: the worker had not missed us yet."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                message = await self._welcomed
        except TimeoutError as error:
            raise PeerLost(f"worker at {self._address} did not answer Hello") from error
        if message is None:
            raise PeerLost(f"worker at {self._address}: {self.lost}")
        if message.version != self._version:
            raise WireError(
                f"worker {message.registration.worker} speaks version {message.version} of the "
                f"wire, and registered version {self._version}"
            )
        return message.registration

    def _greet(self, message: ToRouter) -> None:
        if self._welcomed.done():
            self._early.append(message)
        elif isinstance(message, Welcome):
            self._welcomed.set_result(message)

    def _receive(self, frame: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        try:
            if self._take_frame is None or not self._take_frame(frame):
                self._accept(to_router.decode(frame))
        except WireError as error:
            self._lose(str(error))
        except Exception as error:  # of whoever hears: raised to it
            self._error = error
            self._lose(str(error))

    def _notice(self, event: bytes) -> None:
        """Whatever the monitor says is the end of the connection."""
        self._reader.read()  # its last words
        self._lose("disconnected")

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        silence = Silence(self._silent_after_s, loop.time())
        next_ping = loop.time()
        while True:
            now = loop.time()
            self._heard += silence.forgiven_s(now)
            if silence.too_long(self._heard, now):
                self._is_silent = self.lost is None
                return self._lose(f"silent for {self._silent_after_s} s")
            if now >= next_ping:
                next_ping = now + min(PING_S, self._silent_after_s / 3)
                try:
                    self.send_now(Ping(num_workers=self._num_links()))
                except PeerLost:
                    return None
            await asyncio.sleep(silence.tick_s)

    def _lose(self, reason: str) -> None:
        if self.lost is None:
            self.lost = reason
            self._reader.close()
            self._watch.close()
            self._is_lost.set()
            if not self._welcomed.done():
                self._welcomed.set_result(None)

    async def _close(self) -> None:
        linger_ms = LINGER_MS if self.lost is None else 0
        self._lose("closed")
        if self._tending is not None:
            self._tending.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=linger_ms)
