"""The least a router does, over the real links: for tests of workers without our router."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex

from support.eventually import START_S, WITHIN_S, soon

from protocol.channel.link import WorkerLink
from protocol.errors import BatonError, PeerLost
from protocol.ids import RequestId, RouterId, WorkerId
from protocol.messages import (
    Abort,
    Aborted,
    Beat,
    Decode,
    Emit,
    Failed,
    Finished,
    Landed,
    LoadReport,
    Prefill,
    PrefillDone,
    PromptScores,
    PromptVector,
    Registration,
    Sampling,
    Started,
    Step,
    TextPart,
    Ticket,
    ToRouter,
    Welcome,
)
from protocol.store.address import RedisAddress
from protocol.store.workers import Store

Word = Started | Landed | Finished | Failed | Aborted | PrefillDone
ENDINGS = (Finished, Failed, Aborted, PrefillDone)


@dataclass
class Heard:
    """What one worker said about one attempt."""

    words: list[Word] = field(default_factory=list)
    emits: list[Emit] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    """When each was heard, of the monotonic clock."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ending(self) -> Word | None:
        return next((word for word in self.words if isinstance(word, ENDINGS)), None)

    @property
    def tokens(self) -> list[int]:
        return [emit.token_id for emit in self.emits]

    @property
    def text(self) -> str:
        return "".join(emit.text for emit in self.emits)

    def find(self, kind: type[Word]) -> Word | None:
        return next((word for word in self.words if isinstance(word, kind)), None)


class MiniRouter:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.router = RouterId(f"test-{token_hex(4)}")
        self.links: dict[WorkerId, WorkerLink] = {}
        self.beats: dict[WorkerId, Beat] = {}
        """The last of each linked worker."""
        self.heard: dict[tuple[WorkerId, RequestId, int], Heard] = {}

    async def keep_linking(self) -> None:
        """A link to every registered worker that has none, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for registration in await self._registrations():
                    if registration.worker not in self.links:
                        task = self._listen(registration.worker, registration.address)
                        self.links.setdefault(registration.worker, None)  # type: ignore[arg-type]
                        tasks.create_task(task, name=f"link-{registration.worker}")
                await asyncio.sleep(0.02)

    async def ready(self, *workers: str) -> None:
        def all_linked() -> bool:
            return all(WorkerId(worker) in self.beats for worker in workers)

        await soon(all_linked, START_S, f"links to {workers}")

    async def gone(self, worker: str) -> None:
        await soon(lambda: self.links.get(WorkerId(worker)) is None, 10, f"{worker} gone")

    def beat(self, worker: str) -> Beat:
        return self.beats[WorkerId(worker)]

    def of(self, worker: str, request: str, attempt: int = 0) -> Heard:
        key = (WorkerId(worker), RequestId(request), attempt)
        return self.heard.setdefault(key, Heard())

    async def prefill(
        self, worker: str, request: str, prompt: Sequence[int], sampling: Sampling, **more: object
    ) -> Heard:
        fields = {"attempt": 0, "generated": (), "salt": "", "deadline_s": 60.0, **more}
        message = Prefill(
            request=RequestId(request),
            token_ids=tuple(prompt),
            sampling=sampling,
            **fields,  # type: ignore[arg-type]
        )
        self.links[WorkerId(worker)].send_now(message)
        return self.of(worker, request, message.attempt)

    async def decode(
        self,
        worker: str,
        request: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        ticket: Ticket | None = None,
        **more: object,
    ) -> Heard:
        fields = {"attempt": 0, "generated": (), "salt": "", "deadline_s": 60.0, **more}
        message = Decode(
            request=RequestId(request),
            token_ids=tuple(prompt),
            sampling=sampling,
            ticket=ticket,
            **fields,  # type: ignore[arg-type]
        )
        self.links[WorkerId(worker)].send_now(message)
        return self.of(worker, request, message.attempt)

    async def abort(self, worker: str, request: str, attempt: int = 0) -> None:
        self.links[WorkerId(worker)].send_now(
            Abort(request=RequestId(request), attempt=attempt, reason="test")
        )

    async def disaggregated(
        self,
        request: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        prefill: str = "prefill-0",
        decode: str = "decode-0",
        **more: object,
    ) -> tuple[Heard, Heard]:
        """What the two workers said, to both endings."""
        first = await self.prefill(prefill, request, prompt, sampling, **more)
        await soon(lambda: bool(first.words), 60, f"{request} started")
        started = first.words[0]
        assert isinstance(started, Started), started
        second = await self.decode(decode, request, prompt, sampling, ticket=started.ticket, **more)
        await self.ended(first, second)
        return first, second

    async def ended(self, *heards: Heard) -> None:
        await soon(lambda: all(heard.ending for heard in heards), 60, "endings")

    async def idle(self, *workers: str, within_s: float = WITHIN_S) -> None:
        """Every block is back in its pool, and nothing runs."""

        def all_idle() -> bool:
            beats = [self.beat(worker) for worker in workers]
            return all(
                beat.blocks.free + beat.blocks.cached == beat.blocks.total
                and beat.blocks.leased == 0
                and beat.load.running == beat.load.waiting == 0
                for beat in beats
            )

        await soon(all_idle, within_s, f"{workers} idle")

    async def _registrations(self) -> list[Registration]:
        try:
            return [record.registration for record in await self.store.list_workers()]
        except BatonError:
            return []

    async def _listen(self, worker: WorkerId, address: str) -> None:
        try:
            async with WorkerLink(address=address, router=self.router) as link:
                self.links[worker] = link
                await link.hear(partial(self._hear, worker))
        except PeerLost:
            pass
        finally:
            self.links.pop(worker, None)
            self.beats.pop(worker, None)

    def _hear(self, worker: WorkerId, message: ToRouter) -> None:
        match message:
            case Step(emits=emits):
                for emit in emits:
                    heard = self.of(worker, emit.request, emit.attempt)
                    heard.emits.append(emit)
                    heard.at_s.append(time.monotonic())
            case PromptScores() | PromptVector() | LoadReport():
                pass
            case Beat():
                self.beats[worker] = message
            case Welcome() | TextPart():
                pass
            case _:
                self.of(worker, message.request, message.attempt).words.append(message)


@asynccontextmanager
async def mini_router(redis: RedisAddress) -> AsyncIterator[MiniRouter]:
    store = Store(redis)
    router = MiniRouter(store)
    try:
        async with asyncio.TaskGroup() as tasks:
            linking = tasks.create_task(router.keep_linking(), name="keep-linking")
            yield router
            linking.cancel()
    finally:
        await store.close()
