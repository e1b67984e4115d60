"""The router's end of the link to one worker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Self

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from protocol.channel.resolver import Resolver
from protocol.channel.wire import (
    LINGER_MS,
    PING_S,
    QUEUE_MESSAGES,
    SILENT_AFTER_S,
    Silence,
    configure,
    send_error,
)
from protocol.codec import WIRE_VERSION, to_router, to_worker
from protocol.errors import PeerLost, WireError
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
    ) -> None:
        """`num_links`: workers that this router hears, for them to know."""
        self._resolver = resolver or Resolver()
        self._num_links = num_links
        self._address = address
        self._router = router
        self._silent_after_s = silent_after_s
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []
        self._incoming: asyncio.Queue[ToRouter | None] = asyncio.Queue(QUEUE_MESSAGES)
        self._heard = 0.0
        self.lost: str | None = None
        """Why the link is lost; None while it lives."""

    registration: Registration

    async def __aenter__(self) -> Self:
        number = await self._resolver.resolve(self._address)
        self._heard = asyncio.get_running_loop().time()
        self._open_sockets()
        await self._tasks.__aenter__()
        try:
            self._socket.setsockopt(zmq.IPV6, "[" in number)
            self._socket.connect(number)
            for run in (self._receive, self._watch, self._tend):
                self._running.append(self._tasks.create_task(run(), name=f"link-{run.__name__}"))
            self.send_now(Hello(router=self._router, version=WIRE_VERSION))
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
        context = zmq.asyncio.Context.instance()
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
            self._monitor = self._socket.get_monitor_socket(events)
        except zmq.ZMQError as error:
            self._socket.close(linger=0)
            raise PeerLost(f"worker at {self._address}: {_NO_SOCKET}: {error}") from error

    def send_now(self, message: ToWorker) -> None:
        """Raises PeerLost when the link is lost. Never waits for the worker. In the event loop's
        thread only."""
        if self.lost is None:
            frame = to_worker.encode(message)
            error = send_error(self._socket.send(frame, flags=zmq.NOBLOCK))
            if error is None:
                return
            self._lose(f"cannot send: {error}")
        raise PeerLost(f"worker at {self._address}: {self.lost}")

    async def messages(self) -> AsyncIterator[ToRouter]:
        """What the worker says, Beats included, in order; ends by raising PeerLost."""
        while True:
            yield await self._next()

    async def _next(self) -> ToRouter:
        while self.lost is None or not self._incoming.empty():
            message = await self._incoming.get()
            if message is not None:
                return message
        raise PeerLost(f"worker at {self._address}: {self.lost}")

    async def _welcome(self) -> Registration:
        """What comes before it was meant for our last link: the worker had not missed us yet."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                while not isinstance(message := await self._next(), Welcome):
                    pass
        except TimeoutError as error:
            raise PeerLost(f"worker at {self._address} did not answer Hello") from error
        if message.version != WIRE_VERSION:
            raise WireError(
                f"worker {message.registration.worker} speaks version {message.version}, "
                f"this router {WIRE_VERSION}"
            )
        return message.registration

    async def _receive(self) -> None:
        while True:
            frame = await self._socket.recv()
            self._heard = asyncio.get_running_loop().time()
            try:
                message = to_router.decode(frame)
            except WireError as error:
                return self._lose(str(error))
            await self._incoming.put(message)

    async def _watch(self) -> None:
        await recv_monitor_message(self._monitor)
        self._lose("disconnected")

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        silence = Silence(self._silent_after_s, loop.time())
        next_ping = loop.time()
        while True:
            now = loop.time()
            self._heard += silence.forgiven_s(now)
            if silence.too_long(self._heard, now):
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
            if not self._incoming.full():
                self._incoming.put_nowait(None)

    async def _close(self) -> None:
        linger_ms = LINGER_MS if self.lost is None else 0
        self._lose("closed")
        for task in self._running:
            task.cancel()
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._socket.close(linger=linger_ms)
