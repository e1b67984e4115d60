"""One request while it is open: what its workers say is carried out in the turn in which it comes.

`router.requests.request` says what to do about a message; here it is done: a worker is told, the
request's listener is, or whoever awaits the request's `turn`. No task, no queue: of a token that is
due nothing comes but one call of the listener.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import assert_never

from protocol.ids import Epoch, WorkerId
from protocol.messages import Emit, OfAttempt
from router.admission.queued_request import QueuedRequest
from router.failover.stall import Wait
from router.fast_path.fast_path import FastPath
from router.requests.context import RequestContext
from router.requests.ending import EndWell
from router.requests.events import Ended, Read
from router.requests.family import ForkPoint
from router.requests.instructions import Deliver, GiveUp, Instruction, PlaceAgain, Send
from router.requests.recorder import Recorder
from router.requests.token_listener import PlainListener, TokenListener
from router.workers.worker_messages import WorkerGone, WorkerMessage


class OpenRequest:
    """A `router.workers.message_receiver.MessageReceiver`. `post` tells a worker something; False:
    it is gone."""

    __slots__ = (
        "_accept_next", "_family", "_fast_path", "_is_busy", "_is_joining", "_listener", "_loop",
        "_note_gap", "_post", "_recorder", "_routed", "_slot", "_tell_token", "_turn", "_waiting",
        "context", "is_closed", "origin", "queued",
    )  # fmt: skip

    def __init__(
        self,
        context: RequestContext,
        listener: TokenListener,
        *,
        post: Callable[[Send], bool],
        recorder: Recorder,
        queued: QueuedRequest,
        fast_path: FastPath | None = None,
    ) -> None:
        """`queued`: as it waits for a worker, if it has to. `fast_path`: what the same worker says
        next may take it."""
        self.context = context
        self.queued = queued
        self.origin: OpenRequest | None = None
        """Whose prompt the attempt under way goes on from."""
        request = context.request
        self._family = request.family if request.is_first else None
        if self._family is not None:
            self._family.lead(self)
        self._routed = context.routed
        self._accept_next = context.routed.accept_next
        self._tell_token, self._note_gap = listener.token, recorder.note_gap
        self._listener = listener
        self._fast_path = fast_path if isinstance(listener, PlainListener) else None
        self.is_closed = False
        self._slot = -1
        """On the fast path; what passes there is not yet in `context`. -1: not there."""
        self._is_joining = False
        self._post = post
        self._recorder = recorder
        self._waiting: deque[WorkerMessage] = deque()
        """What came while another message was carried out."""
        self._is_busy = False
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Future[Ended | PlaceAgain | Exception] = self._loop.create_future()

    @property
    def last_token_at(self) -> float:
        """When its client's last token came, on the registry's clock; 0.0 before the first."""
        if self._slot < 0 or self._fast_path is None:
            return self.context.last_token_at
        return self._fast_path.last_at(self._slot)

    async def turn(self) -> Ended | PlaceAgain:
        """The ending, or that the attempt under way is lost: then it is to be placed again. Raises
        what gave the request up."""
        said = await self._turn
        if isinstance(said, Exception):
            raise said
        self._turn = self._loop.create_future()
        return said

    def accept_emit(self, emit: Emit, worker: WorkerId, epoch: Epoch, now: float) -> None:
        if self._slot >= 0:
            self.leave_fast_path()
        if not self._accept_next(emit, worker, epoch):
            self.accept_message(WorkerMessage(worker, epoch, emit), now=now)
            return
        context = self.context
        self._note_gap(now - context.last_token_at)
        context.last_token_at = now
        try:
            self._tell_token(emit)
        except Exception as error:  # ends this request, whose task raises it; no other's
            self._fail(error)
            return
        if self._fast_path is not None and not self._is_joining:
            self._is_joining = True
            self._loop.call_soon(self._join_fast_path)  # when this token is out of the transport

    def accept_message(self, message: WorkerMessage, *, now: float) -> None:
        self.leave_fast_path()
        self._waiting.append(message)
        if self._is_busy:
            return
        self._is_busy = True
        try:
            while self._waiting:
                self._carry_out(self._waiting.popleft(), now=now)
            self.note_told()
        except Exception as error:  # as above
            self._fail(error)
        finally:
            self._waiting.clear()
            self._is_busy = False

    def tell_worker(self, send: Send, *, now: float) -> None:
        """A worker that cannot be told any more is as good as gone."""
        if not self._post(send):
            gone = WorkerGone("was gone when it was to be told")
            self.accept_message(WorkerMessage(send.worker, send.epoch, gone), now=now)

    def note_told(self) -> None:
        """A worker has the attempt under way: others of its family may go on from it."""
        if self._family is not None:
            self._family.note_changed()

    @property
    def fork_point(self) -> ForkPoint | None:
        """As of `router.requests.family.Leader`."""
        leg, routed = self._routed.decoding_leg, self._routed
        if leg is None:
            return None
        return ForkPoint(
            worker=leg.worker,
            epoch=leg.epoch,
            origin=OfAttempt(request=routed.wire_id, attempt=routed.attempt),
            expected_first_s=self.context.expected_first_s,
        )

    @property
    def silent_since(self) -> float:
        """When its workers last said a token, or were told of it; inf while it has none, or waits
        for one that another of its family waits for too, which is watched for both."""
        context = self.context
        if context.waits_since is not None:
            return inf
        since = max(context.sent_at, self.last_token_at)
        if self.origin is None or self._routed.is_streaming:
            return since
        began_at = self.origin.context.first_token_at
        if began_at is None:
            return since if self.origin.is_closed else inf
        return max(since, began_at)

    def find_wait(self) -> Wait | None:
        """None while it waits for no worker."""
        context, awaited = self.context, self._routed.awaited_worker()
        if awaited is None:
            return None
        worker, what = awaited
        is_streaming = self._routed.is_streaming
        return Wait(
            worker=worker,
            awaited=what,
            since=self.silent_since,
            expected_s=context.expected_next_s if is_streaming else context.expected_first_s,
            is_streaming=is_streaming,
            is_compiled=context.request.sampling.grammar is not None,
            num_stalls=context.num_stalled,
        )

    def stall(self, why: str, wait: Wait, *, now: float) -> None:
        """The attempt under way comes to nothing, though nobody said so; none is: nothing."""
        self.leave_fast_path()
        told = self._routed.give_up_attempt(why, suspect=wait.worker, awaited=wait.awaited)
        if told:
            self._recorder.note_stall(self.context, why, wait.awaited)
        self._obey(told, now=now)

    def close(self, why: str, *, client_left: bool) -> None:
        """Tells whoever still has it. Idempotent."""
        self.leave_fast_path()
        self._fast_path, self.is_closed = None, True
        if self._family is not None:
            self._family.leave()
        for send in self._routed.close(why, client_left=client_left):
            self._post(send)

    def leave_fast_path(self) -> None:
        """Counts what has passed there. Idempotent: to be called before anything else is done with
        the request or its socket."""
        if self._slot < 0:
            return
        assert self._fast_path is not None and isinstance(self._listener, PlainListener)
        slot, self._slot = self._slot, -1
        taken = self._fast_path.take_stream(slot)
        self._routed.accept_passed(taken.token_ids)
        self.context.last_token_at = taken.last_at
        try:
            self._listener.note_passed(len(taken.token_ids), taken.rest)
        except Exception as error:  # as above
            self._fail(error)

    def _join_fast_path(self) -> None:
        self._is_joining = False
        path, speaker, listener = self._fast_path, self._routed.speaker, self._listener
        if path is None or speaker is None or self._slot >= 0:
            return
        assert isinstance(listener, PlainListener)
        events = listener.lend_socket(self.leave_fast_path)
        if events is None:
            return
        _, epoch, attempt = speaker
        self._slot = path.add_stream(
            self._routed.wire_id,
            epoch=epoch,
            attempt=attempt,
            due=len(self._routed.generated),
            events=events,
            last_at=self.context.last_token_at,
            when_stuck=self.leave_fast_path,
        )

    def _carry_out(self, message: WorkerMessage, *, now: float) -> None:
        remaining_s = self.context.ends_at - now
        self._obey(self._routed.accept_message(message, remaining_s=remaining_s), now=now)

    def _obey(self, instructions: list[Instruction], *, now: float) -> None:
        for instruction in instructions:
            match instruction:
                case Send():
                    self.tell_worker(instruction, now=now)
                case Deliver(event):
                    self._tell(event, now=now)
                case PlaceAgain():
                    self._say(instruction)
                case EndWell():
                    self._say(self._ended(instruction, now=now))
                case GiveUp(error):
                    self._say(error)
                case _:
                    assert_never(instruction)

    def _tell(self, event: Emit | Read, *, now: float) -> None:
        self._tell_route()
        if isinstance(event, Emit):
            self._routed.note_first_token(now - self.context.sent_at)
            self._recorder.note_token(self.context, now=now)
            self._listener.token(event)
        else:
            self._listener.read(event)

    def _tell_route(self) -> None:
        if not self.context.is_told:
            self.context.is_told = True
            self._listener.placed(self._routed.route)

    def _ended(self, ending: EndWell, *, now: float) -> Ended:
        self._tell_route()
        trace = self.context.final_trace = self.context.trace(now=now)
        return Ended(
            finish_reason=ending.reason,
            stopped_by=ending.stopped_by,
            cached_tokens=trace.cached_tokens,
            trace=trace,
        )

    def _fail(self, error: Exception) -> None:
        """Its workers are free at once, whenever its task runs again."""
        self.close(str(error), client_left=False)
        self._say(error)

    def _say(self, said: Ended | PlaceAgain | Exception) -> None:
        if not self._turn.done():
            self._turn.set_result(said)
