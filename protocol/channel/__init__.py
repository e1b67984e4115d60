"""The link between a router and a worker, over ZeroMQ. The only door to it for control messages.

A worker binds one `RouterPort`; a router opens one `WorkerLink` per worker. A link is one
connection: once lost it stays lost, and all that was asked over it is void; open another.
Queues are bounded and a send never blocks: a peer that does not read is a lost peer. Messages
arrive in order or not at all. Delivery is not promised: the receiver may die with it.
"""

from protocol.channel.link import WorkerLink
from protocol.channel.port import Arrival, Request, RouterGone, RouterJoined, RouterPort

__all__ = ["Arrival", "Request", "RouterGone", "RouterJoined", "RouterPort", "WorkerLink"]
