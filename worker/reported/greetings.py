"""Whether routers know this worker: until then it is not ready, for its predecessor may go then.

Of routers only those count that are registered: an old one that is stopped, or another cluster's,
is not waited for.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.codec import WIRE_VERSION
from protocol.errors import StoreError
from protocol.ids import RouterId
from protocol.process.health import Health
from protocol.store.workers import RouterRecord

ONE_IS_ENOUGH_S = 30.0
"""So long all registered routers are waited for; from then on one will do."""
WITHOUT_REDIS_S = 5.0
"""So long somebody is waited for where nobody can say who there is."""
LOOK_S, ASK_S = 0.05, 0.5
"""Between two looks at who has greeted, and two questions to Redis."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why a worker is not ready, and whether it is to be ready all the same."""

    why: str
    is_over: bool = False


def waits_for(
    registered: Sequence[RouterRecord] | None, met: Collection[RouterId], *, waited_s: float
) -> Waiting | None:
    """None: for nobody. `registered` None: Redis does not say. `met`: routers that have greeted
    it."""
    if registered is None:
        is_over = bool(met) or waited_s >= WITHOUT_REDIS_S
        return Waiting(why="no router has met it, Redis is away", is_over=is_over)
    absent = [one for one in registered if one.router not in met]
    if not absent:
        return None
    is_over = len(absent) < len(registered) and waited_s >= ONE_IS_ENOUGH_S
    return Waiting(why="; ".join(map(_why, absent)), is_over=is_over)


def _why(absent: RouterRecord) -> str:
    if WIRE_VERSION not in absent.wires:
        spoken = " and ".join(str(wire) for wire in sorted(absent.wires))
        return f"{absent.router} speaks wire {spoken or 'nothing'}, this worker {WIRE_VERSION}"
    return f"{absent.router} has not met it"


class Registered(Protocol):
    async def list_routers(self) -> Sequence[RouterRecord]:
        """As `protocol.membership.Membership.list_routers`."""


class Greetings:
    """Of one worker, from its registration on."""

    def __init__(
        self,
        *,
        membership: Registered,
        health: Health,
        met: Callable[[], Collection[RouterId]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._membership = membership
        self._health = health
        self._met = met
        self._clock = clock
        self._registered: Sequence[RouterRecord] | None = None
        health.note_waiting("it is not registered yet")

    async def run(self) -> None:
        """Returns when the worker is ready, as far as its routers are concerned."""
        while self._health.store_wait() is not None:  # noqa: ASYNC110 - nobody can have found it yet
            await asyncio.sleep(LOOK_S)
        began: float | None = None
        while True:
            self._registered = await self._ask()
            began = self._clock() if began is None else began
            next_ask = self._clock() + ASK_S
            while self._clock() < next_ask:
                if self._is_over(waited_s=self._clock() - began):
                    return
                await asyncio.sleep(LOOK_S)

    def _is_over(self, *, waited_s: float) -> bool:
        waiting = waits_for(self._registered, self._met(), waited_s=waited_s)
        if waiting is not None and not waiting.is_over:
            self._health.note_waiting(waiting.why)
            return False
        if waiting is not None:
            remedy = "see the log of those routers, and the network between; requests that they get"
            remedy += " do not come here"
            log.warning("ready without all routers", extra={"why": waiting.why, "remedy": remedy})
        self._health.note_waiting(None)
        return True

    async def _ask(self) -> Sequence[RouterRecord] | None:
        try:
            return await self._membership.list_routers()
        except StoreError:
            return None
