"""The worker's end of its links to all routers: one bound socket."""

import asyncio
import errno
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

import zmq
import zmq.asyncio

from protocol.channel.wire import (
    LINGER_MS,
    QUEUE_MESSAGES,
    SILENT_AFTER_S,
    Silence,
    configure,
    send_error,
)
from protocol.codec import WIRE_VERSION, to_router, to_worker
from protocol.errors import WireError
from protocol.ids import RouterId
from protocol.messages import (
    Abort,
    AskText,
    Computation,
    Hello,
    Ping,
    Registration,
    ToRouter,
    Welcome,
)
from protocol.process.listening import bracketed, unlistenable

_ROUTER_GONE = "none if it was stopped; otherwise look at its log and the network between"
_FRAME_REFUSED = "run routers and workers of one version, and let nobody else reach this port"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouterJoined:
    router: RouterId
    is_new_link: bool = field(default=True, compare=False)
    """Or it was silent, and is heard again."""


@dataclass(frozen=True, slots=True)
class RouterGone:
    """All this router asked for is void: abort it."""

    router: RouterId
    reason: str


@dataclass(frozen=True, slots=True)
class RouterMessage:
    """What a router asks for."""

    router: RouterId
    message: Computation | Abort | AskText


Arrival = RouterJoined | RouterGone | RouterMessage


class RouterPort:
    """The worker's end: all its routers on one socket. `send` is for any thread, the rest for
    the event loop. Raises SettingsError when the port cannot be had."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        silent_after_s: float = SILENT_AFTER_S,
        max_unheard: int = QUEUE_MESSAGES,
    ) -> None:
        """Beyond `max_unheard` arrivals that nobody has received, routers wait."""
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._silent_after_s = silent_after_s
        self._heard: dict[RouterId, float] = {}
        self._absent: dict[RouterId, float] = {}
        self._num_received: dict[RouterId, int] = {}
        self._num_workers: dict[RouterId, int] = {}
        self._arrivals: asyncio.Queue[Arrival] = asyncio.Queue()
        self._room = asyncio.Semaphore(max_unheard)
        self._lock = threading.Lock()
        self._outbox: deque[tuple[RouterId, bytes]] = deque()
        self._dropped: set[RouterId] = set()
        """Routers that lost a message because the outbox was full."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.refused_frames = 0
        configure(self._socket)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            self._socket.setsockopt(zmq.IPV6, ":" in host)
            self._socket.bind(f"tcp://{bracketed(host)}:{port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise unlistenable("port", host, port, error) from error
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])

    @asynccontextmanager
    async def serve(self, registration: Registration) -> AsyncIterator[Self]:
        """Answers routers while the block runs; `registration` is what they are told."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                receive = tasks.create_task(self._receive(registration), name="port-receive")
                watch = tasks.create_task(self._watch(), name="port-watch")
                try:
                    yield self
                finally:
                    receive.cancel()
                    watch.cancel()
                    self._flush()
        finally:
            self.close()

    def close(self) -> None:
        self._context.destroy(linger=LINGER_MS)

    @property
    def routers(self) -> tuple[RouterId, ...]:
        return tuple(self._heard)

    @property
    def num_unheard(self) -> int:
        """Arrivals that nobody has received."""
        return self._arrivals.qsize()

    async def receive(self) -> Arrival:
        """The next thing routers want, in the order it came."""
        arrival = await self._arrivals.get()
        if not isinstance(arrival, RouterGone):  # of which there is at most one per joining
            self._room.release()
        match arrival:
            case RouterJoined(router, is_new_link=True):
                self._num_received[router] = 0
            case RouterMessage(router, message) if not isinstance(message, Abort | AskText):
                self._num_received[router] = self.num_received(router) + 1
        return arrival

    def num_received(self, router: RouterId) -> int:
        """Computations that `receive` gave of this router since it opened its link."""
        return self._num_received.get(router, 0)

    def num_workers(self, router: RouterId) -> int:
        """That this router says it hears, this one among them."""
        return self._num_workers.get(router, 1)

    def send(self, router: RouterId, message: ToRouter) -> None:
        """Hands the message over and returns; from any thread, while `serve` runs. A router
        that is gone, or does not read, loses it and all it asked for."""
        frame = to_router.encode(message)
        with self._lock:
            if len(self._outbox) >= QUEUE_MESSAGES:
                self._dropped.add(router)  # a flush is due, and tells
                return
            self._outbox.append((router, frame))
            if len(self._outbox) > 1:  # a flush is due
                return
        assert self._loop is not None, "send before serve"
        self._loop.call_soon_threadsafe(self._flush)

    def broadcast(self, message_to: Callable[[RouterId], ToRouter]) -> None:
        """To every router present what is meant for it; from the event loop."""
        for router in self.routers:
            self._transmit(router, to_router.encode(message_to(router)))

    def _flush(self) -> None:
        with self._lock:
            frames = list(self._outbox)
            self._outbox.clear()
            dropped, self._dropped = self._dropped, set()
        if self._socket.closed:
            return
        for router, frame in frames:
            self._transmit(router, frame)
        for router in dropped:
            self._cut(router, f"{QUEUE_MESSAGES} messages unsent")

    def _transmit(self, router: RouterId, frame: bytes) -> None:
        error = send_error(self._socket.send_multipart([router.encode(), frame], flags=zmq.NOBLOCK))
        if error is None:
            return
        if not isinstance(error, zmq.ZMQError):
            raise error
        if error.errno == errno.EHOSTUNREACH:
            self._leave(router, "link lost")
        elif error.errno == errno.EAGAIN:
            self._cut(router, f"{QUEUE_MESSAGES} messages unread")
        else:
            raise error

    def _cut(self, router: RouterId, reason: str) -> None:
        """It missed a message. Only a new link lets it back in: unheard and without beats it
        takes this one for lost, and what it waits for with it."""
        self._leave(router, reason)
        self._absent.pop(router, None)

    def _leave(self, router: RouterId, reason: str) -> None:
        heard = self._heard.pop(router, None)
        if heard is not None:
            self._absent[router] = heard
            log.warning(
                "router gone", extra={"router": router, "reason": reason, "remedy": _ROUTER_GONE}
            )
            self._arrivals.put_nowait(RouterGone(router, reason))

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        silence = Silence(self._silent_after_s, loop.time())
        while True:
            await asyncio.sleep(silence.tick_s)
            now = loop.time()
            forgiven_s = silence.forgiven_s(now)
            for router, heard in list(self._heard.items()):
                self._heard[router] = heard + forgiven_s
                if silence.too_long(self._heard[router], now):
                    self._leave(router, f"silent for {self._silent_after_s} s")
            for router, heard in list(self._absent.items()):
                if now - heard > 20 * self._silent_after_s:
                    del self._absent[router]
            for known in (self._num_received, self._num_workers):
                for router in known.keys() - self._heard.keys() - self._absent.keys():
                    del known[router]

    async def _receive(self, registration: Registration) -> None:
        welcome = to_router.encode(Welcome(registration=registration, version=WIRE_VERSION))
        while True:
            frames = await self._socket.recv_multipart()
            try:
                await self._accept(frames, welcome)
            except (WireError, UnicodeDecodeError) as error:
                self.refused_frames += 1
                extra = {"peer": repr(frames[0]), "why": str(error), "remedy": _FRAME_REFUSED}
                log.warning("frame refused", extra=extra)

    async def _accept(self, frames: list[bytes], welcome: bytes) -> None:
        if len(frames) != 2:
            raise WireError(f"{len(frames)} frames instead of 2")
        router, message = RouterId(frames[0].decode()), to_worker.decode(frames[1])
        if isinstance(message, Hello):
            return await self._greet(router, message, welcome)
        if router in self._absent:  # it was stopped, not dead: what it asked is void, it is not
            await self._join(router, is_new_link=False)
        if router not in self._heard:
            raise WireError(f"{type(message).__name__} before Hello")
        self._heard[router] = asyncio.get_running_loop().time()
        if isinstance(message, Ping):
            self._num_workers[router] = message.num_workers
            return None
        await self._room.acquire()
        self._arrivals.put_nowait(RouterMessage(router, message))
        return None

    async def _greet(self, router: RouterId, hello: Hello, welcome: bytes) -> None:
        self._leave(router, "it opened a new link")
        if hello.version != WIRE_VERSION:
            self._transmit(router, welcome)  # our version in it tells the router why
            raise WireError(f"router {router} speaks version {hello.version}, not {WIRE_VERSION}")
        await self._join(router, is_new_link=True)
        self._transmit(router, welcome)

    async def _join(self, router: RouterId, *, is_new_link: bool) -> None:
        await self._room.acquire()
        self._absent.pop(router, None)
        self._heard[router] = asyncio.get_running_loop().time()
        self._arrivals.put_nowait(RouterJoined(router, is_new_link))
