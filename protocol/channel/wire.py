"""What both ends of a link share: socket options, limits, and the judgement of silence.

A worker binds one `RouterPort`; a router opens one `WorkerLink` per worker. A link is one
connection: once lost it stays lost, and all that was asked over it is void; open another.
Queues are bounded and a send never blocks: a peer that does not read is a lost peer. Messages
arrive in order or not at all. Delivery is not promised: the receiver may die with it.
"""

import asyncio
from collections.abc import Awaitable
from typing import cast

import zmq
import zmq.asyncio

from protocol.codec import MAX_MESSAGE_BYTES

PING_S = 1.0
SILENT_AFTER_S = 3.0
"""A peer silent this long is lost: three pings, six beats."""
QUEUE_MESSAGES = 10_000
"""Per peer and direction: minutes of steps. More means that the peer has stopped reading."""
LINGER_MS = 500
"""Closing waits this long for the last words to leave."""


class Silence:
    """Who has not been heard for too long. Forgives everyone after we were stopped ourselves."""

    def __init__(self, limit_s: float, now: float) -> None:
        self.tick_s = limit_s / 6
        self._limit_s = limit_s
        self._checked = now

    def forgiven_s(self, now: float) -> float:
        """Seconds by which this check comes late: time in which nobody could be heard."""
        late = now - self._checked - 2 * self.tick_s
        self._checked = now
        return max(0.0, late)

    def too_long(self, heard: float, now: float) -> bool:
        return now - heard > self._limit_s


def send_error(sent: Awaitable[object]) -> BaseException | None:
    """What became of a send with NOBLOCK, which is done when it returns."""
    return cast("asyncio.Future[object]", sent).exception()


def configure(socket: "zmq.asyncio.Socket | zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, round(PING_S * 1000))
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, round(SILENT_AFTER_S * 1000))
