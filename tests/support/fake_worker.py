"""Workers without a model: the real protocol over real sockets, tokens that can be foretold.

Each request a worker gets takes the next `Act` of its plan, else it is served well. The KV of a
prompt is the prompt itself, kept in a `Fabric` all workers of a test share: a decode worker that
was told another sequence than its source computed answers wrong tokens.
"""

import asyncio
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal

from msgspec import structs
from support.babble import anything
from support.fabric import Fabric, SourceLost
from support.processes import ROOT
from support.words import LAYOUT, beat

from protocol.channel.port import RouterGone, RouterJoined, RouterMessage, RouterPort
from protocol.codec import WIRE_VERSION
from protocol.ids import Epoch, LeaseId, RequestId, RouterId, WorkerId, new_epoch
from protocol.messages import (
    Abort,
    Aborted,
    AskText,
    Beat,
    Computation,
    Decode,
    Emit,
    FailCode,
    Failed,
    Finished,
    FinishReason,
    Landed,
    Load,
    Prefill,
    PrefillDone,
    PromptScores,
    ReadPrompt,
    Registration,
    Role,
    Sampling,
    Speeds,
    Started,
    Step,
    Ticket,
    ToRouter,
    WorkerState,
)
from protocol.readings import ScorePrompt, TokenScore
from protocol.text.packed_text import PackedText
from router.requests.ending import EndWell

Deed = Literal[
    "die", "refuse", "fail", "outgrow", "hang", "repeat", "skip", "stale", "break", "babble"
]  # fmt: skip
EOS = 0
DEADLY = 96
"""A worker that is given a prompt which begins so dies of it."""
_VOCABULARY = 97


@dataclass(frozen=True, slots=True)
class Act:
    """Misbehave in one request, at `point`: for prefill 0 before `Started`, 1 before the token,
    2 after it; for decode after so many tokens. `refuse` is always at once."""

    deed: Deed
    point: int = 0


def next_token(sequence: Sequence[int]) -> int:
    return zlib.crc32(bytes(str(list(sequence)), "ascii")) % _VOCABULARY


def ending(outputs: Sequence[int], sampling: Sampling) -> FinishReason | None:
    if outputs and outputs[-1] == EOS and not sampling.ignore_eos:
        return "stop"
    return "length" if len(outputs) >= sampling.max_tokens else None


def already_ended(sampling: Sampling, outputs: Sequence[int]) -> EndWell | None:
    reason = ending(outputs, sampling)
    return None if reason is None else EndWell(reason)


def expected(prompt: Sequence[int], sampling: Sampling) -> list[int]:
    """What any worker, or any sequence of workers, answers."""
    outputs: list[int] = []
    while ending(outputs, sampling) is None:
        outputs.append(next_token([*prompt, *outputs]))
    return outputs


def scores_of(prompt: Sequence[int]) -> list[TokenScore]:
    """As likely as what comes before them says."""
    return [
        TokenScore(token_id=token, logprob=-float(next_token(prompt[: index + 1])), rank=1, top=())
        for index, token in enumerate(prompt[1:])
    ]


@cache
def tiny_text() -> PackedText:
    """Of the model that lies in this repository."""
    return PackedText.read(ROOT / "models" / "tiny")


class Died(Exception):
    pass


class FakeWorker:
    """`run()` it in a TaskGroup; `die()` closes its socket without a word."""

    def __init__(
        self,
        name: str,
        role: Role,
        fabric: Fabric,
        *,
        plan: Iterable[Act] = (),
        compat: str = "same",
        model: str = "fake",
        revision: str = "revision",
        text: PackedText | None = None,
        num_blocks: int = 1_000,
        state: WorkerState = "ready",
        prefill_tokens_per_s: float = 1_000.0,
    ) -> None:
        self.id = WorkerId(name)
        self.role = role
        self.plan = deque(plan)
        self.state = state
        self.epoch: Epoch = new_epoch()
        self.dead = asyncio.Event()
        self.working: dict[tuple[RequestId, int], asyncio.Task[None]] = {}
        self.seen: list[Computation] = []
        self.aborted: list[tuple[RequestId, int]] = []
        self.joined = asyncio.Event()
        self.fabric = fabric
        self.pace_s = 0.0
        """Between two tokens."""
        self.resumed = asyncio.Event()
        """Those that hang go on."""
        self._asked_by: dict[tuple[RequestId, int], RouterId] = {}
        self._began = False
        self._speed = prefill_tokens_per_s
        self.text = text or tiny_text()
        self._port = RouterPort()
        self.registration = Registration(
            worker=self.id,
            epoch=self.epoch,
            role=role,
            pid=1,
            host="127.0.0.1",
            address=f"tcp://127.0.0.1:{self._port.port}",
            model=model,
            compat=compat,
            layout=LAYOUT,
            num_blocks=num_blocks,
            max_context_tokens=min(1_000_000, num_blocks * LAYOUT.block_tokens),
            transports=("memory",),
            revision=revision,
            text=self.text.digest,
            wire=WIRE_VERSION,
        )

    async def run(self) -> None:
        self._began = True
        async with self._port.serve(self.registration):
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._beat(), name=f"{self.id} beat")
                    tasks.create_task(self._until_dead(), name=f"{self.id} life")
                    while True:
                        self._take(tasks, await self._port.receive())
            except* Died:
                pass

    @property
    def routers(self) -> tuple[RouterId, ...]:
        """That it hears now."""
        return self._port.routers

    def die(self) -> None:
        self.dead.set()

    def close(self) -> None:
        """For a worker whose `run` never began."""
        if not self._began:
            self._port.close()

    def say(self) -> None:
        """A beat, now."""
        self._port.broadcast(self._beat_to)

    def beat(self) -> Beat:
        return Beat(
            epoch=self.epoch,
            state=self.state,
            blocks=beat().blocks,
            load=Load(running=0, waiting=0, waiting_tokens=0),
            speeds=Speeds(
                prefill_tokens_per_s=self._speed, decode_step_s=0.001, transfer_bytes_per_s=1e9
            ),
            transports_used=(),
        )

    def _beat_to(self, router: RouterId) -> Beat:
        return structs.replace(self.beat(), num_received=self._port.num_received(router))

    async def _until_dead(self) -> None:
        await self.dead.wait()
        for lease in self.fabric.leases.values():
            if lease.source == self.id and not lease.note.done():
                lease.note.set_exception(SourceLost())
        raise Died

    async def _beat(self) -> None:
        while True:
            self.say()
            await asyncio.sleep(0.2)

    def _take(
        self, tasks: asyncio.TaskGroup, arrival: RouterJoined | RouterGone | RouterMessage
    ) -> None:
        match arrival:
            case RouterJoined(router):
                self._port.send(router, self._beat_to(router))
                self.joined.set()
            case RouterGone(gone, _):
                for key, task in self.working.items():
                    if self._asked_by[key] == gone:
                        task.cancel()
            case RouterMessage(router, Abort() as abort):
                key = abort.request, abort.attempt
                self.aborted.append(key)
                if key in self.working:
                    self.working[key].cancel()
                    self._port.send(router, Aborted(request=key[0], attempt=key[1]))
            case RouterMessage(router, AskText() as asked):
                self._port.send(router, self.text.part(asked))
            case RouterMessage(router, Prefill() | Decode() | ReadPrompt() as message):
                self.seen.append(message)
                if message.token_ids[0] == DEADLY:
                    self.die()
                key = message.request, message.attempt
                assert key not in self.working, f"{self.id} got {key} twice"
                task = tasks.create_task(self._work(router, message), name=f"{self.id} {key}")
                self.working[key], self._asked_by[key] = task, router
                task.add_done_callback(lambda _: self.working.pop(key, None))

    async def _work(self, router: RouterId, message: Computation) -> None:
        act = self.plan.popleft() if self.plan else None
        job = _Job(self, router, message, act)
        match message:
            case Prefill():
                await job.prefill(message)
            case Decode():
                await job.decode(message)
            case ReadPrompt():
                await job.read(message)

    def send(self, router: RouterId, message: ToRouter) -> None:
        self._port.send(router, message)


class _Given(Exception):
    """The act ended the job."""


@dataclass(slots=True)
class _Job:
    worker: FakeWorker
    router: RouterId
    message: Computation
    act: Act | None

    async def prefill(self, message: Prefill) -> None:
        sequence = (*message.token_ids, *message.generated)
        fabric = self.worker.fabric
        lease = fabric.open(self.worker.id, sequence)
        try:
            await self._point(0)
            self._send(
                Started(
                    request=self.message.request,
                    attempt=self.message.attempt,
                    ticket=self._ticket(lease, len(sequence)),
                    cached_tokens=4,
                    queued_s=0.0,
                )
            )
            await self._tell_scores(point=1)
            token = next_token(sequence)
            self._emit(len(message.generated), token)
            await self._point(2)
            over = ending([*message.generated, token], message.sampling)
            if over is not None:
                self._finish(over, num_tokens=len(message.generated) + 1)
                return
            self._send(
                PrefillDone(
                    request=self.message.request,
                    attempt=self.message.attempt,
                    cached_tokens=4,
                    queued_s=0.0,
                    prefill_s=0.01,
                )
            )
            fabric.finish(lease, token)
        except _Given:
            return
        finally:
            fabric.lose(lease)

    async def decode(self, message: Decode) -> None:
        outputs = list(message.generated)
        sequence = (*message.token_ids, *outputs)
        try:
            if self.act is not None and self.act.deed == "refuse":
                await self._point(self.act.point)
            if message.ticket is not None:
                sequence, first = await self.worker.fabric.fetch(message.ticket.lease)
                self._send(
                    Landed(
                        request=message.request,
                        attempt=message.attempt,
                        transport="memory",
                        blocks_reused=1,
                        blocks_moved=2,
                        bytes_moved=2 * LAYOUT.block_bytes,
                        fetch_s=0.002,
                        exposed_s=0.001,
                    )
                )
                await self._point(0)
                outputs.append(first)
                self._emit(len(outputs) - 1, first)
                sequence = (*sequence, first)
            else:
                await self._tell_scores(point=0)
            while (over := ending(outputs, message.sampling)) is None:
                await self._point(len(outputs) - len(message.generated))
                outputs.append(next_token(sequence))
                sequence = (*sequence, outputs[-1])
                self._emit(len(outputs) - 1, outputs[-1])
            await self._point(len(outputs) - len(message.generated))
            self._finish(over, num_tokens=len(outputs))
        except SourceLost:
            self._fail("source_lost", "the source is gone")
        except _Given:
            return

    async def read(self, message: ReadPrompt) -> None:
        """At point 0 nothing is said, at 1 a part of the scores, at 2 all and the token."""
        with suppress(_Given):
            await self._point(0)
            await self._tell_scores(point=1)
            num_tokens = message.sampling.max_tokens
            for index in range(num_tokens):
                self._emit(index, next_token(message.token_ids))
            await self._point(2)
            outputs = [next_token(message.token_ids)][:num_tokens]
            reason = ending(outputs, message.sampling)
            assert reason is not None
            self._finish(reason, num_tokens=num_tokens)

    async def _tell_scores(self, *, point: int) -> None:
        """The first before `point`, the others after it."""
        message = self.message
        reading = message.reading
        if not isinstance(reading, ScorePrompt):
            await self._point(point)
            return
        due = scores_of(message.token_ids)[reading.first - 1 :]
        for first, scores in ((reading.first, due[:1]), (reading.first + 1, due[1:])):
            if scores:
                self._send(
                    PromptScores(
                        request=message.request, attempt=message.attempt, first=first,
                        scores=tuple(scores),
                    )
                )  # fmt: skip
            if first == reading.first:
                await self._point(point)

    async def _point(self, point: int) -> None:
        await asyncio.sleep(self.worker.pace_s)
        if self.act is None or (self.act.point != point and self.act.deed != "refuse"):
            return
        match self.act.deed:
            case "die":
                self.worker.die()
                await asyncio.Event().wait()
            case "hang":
                await self.worker.resumed.wait()
            case "refuse":
                self._fail("overloaded", "the queue is full")
                raise _Given
            case "babble":
                for _ in range(9):
                    self._send(anything(self.message))
                raise _Given
            case "break":
                self._fail("broken", "the engine is broken: told to be")
                raise _Given
            case "outgrow":
                self._fail("too_long", "no room in the context")
                raise _Given
            case "fail":
                self._fail("internal", "told to fail")
                raise _Given
            case "repeat" | "skip" | "stale":
                pass

    def _emit(self, index: int, token: int) -> None:
        deed = self.act.deed if self.act is not None else None
        emit = Emit(
            request=self.message.request,
            attempt=self.message.attempt,
            index=index,
            token_id=token,
            text=f"{token} ",
            logprob=None,
            top=(),
        )
        if deed == "stale":
            old = Emit(
                request=emit.request,
                attempt=emit.attempt - 1,
                index=index,
                token_id=token + 1,
                text="stale",
                logprob=None,
                top=(),
            )
            self._send(Step(emits=(old,)))
        if deed == "skip" and self.act is not None and index == self.act.point:
            return
        self._send(Step(emits=(emit, emit) if deed == "repeat" else (emit,)))

    def _finish(self, reason: FinishReason, *, num_tokens: int) -> None:
        self._send(
            Finished(
                request=self.message.request,
                attempt=self.message.attempt,
                reason=reason,
                num_tokens=num_tokens,
                cached_tokens=4,
                queued_s=0.0,
                prefill_s=0.01,
                decode_s=0.02,
            )
        )

    def _fail(self, code: FailCode, message: str) -> None:
        self._send(
            Failed(
                request=self.message.request,
                attempt=self.message.attempt,
                code=code,
                message=message,
                retryable=True,
            )
        )

    def _send(self, message: ToRouter) -> None:
        if not self.worker.dead.is_set():
            self.worker.send(self.router, message)

    def _ticket(self, lease: LeaseId, num_tokens: int) -> Ticket:
        return Ticket(
            worker=self.worker.id,
            epoch=self.worker.epoch,
            lease=lease,
            address="",
            layout=LAYOUT,
            compat=self.worker.registration.compat,
            num_tokens=num_tokens,
        )
