"""A `RoutedRequest` without a cluster: what two workers may say of it, and what it is told to do.

Prompt 1 2 3 4 5 of one block and a token, at most three tokens of output, `EOS` ends it sooner.
"""

from collections.abc import Sequence

from support.words import LAYOUT, registration

from protocol.ids import Epoch, LeaseId, RequestId, WorkerId
from protocol.messages import (
    Abort,
    Aborted,
    Decode,
    Emit,
    FailCode,
    Failed,
    Finished,
    FinishReason,
    Landed,
    Prefill,
    PrefillDone,
    Sampling,
    Started,
    Ticket,
    TokenLogprob,
)
from router.requests.ending import EndWell
from router.requests.events import GenerationRequest
from router.requests.instructions import Deliver, Instruction, Send
from router.requests.request import RoutedRequest
from router.requests.states import RequestState
from router.workers.worker import KnownWorker
from router.workers.worker_messages import RequestMessage, WorkerGone, WorkerMessage

P, D = WorkerId("prefill-0"), WorkerId("decode-0")
ONE, TWO = Epoch(1), Epoch(2)
PREFILL = KnownWorker(registration(P, role="prefill"))
DECODE = KnownWorker(registration(D))
ID, WIRE = RequestId("r"), RequestId("r~1")
PROMPT = (1, 2, 3, 4, 5)
SAMPLING = Sampling(seed=7, max_tokens=3)
EOS = 0
TICKET = Ticket(
    worker=P,
    epoch=ONE,
    lease=LeaseId(1),
    address="tcp://x:1",
    layout=LAYOUT,
    compat="same",
    num_tokens=5,
)


def already_ended(sampling: Sampling, outputs: Sequence[int]) -> EndWell | None:
    if outputs and outputs[-1] == EOS:
        return EndWell("stop")
    return EndWell("length") if len(outputs) >= sampling.max_tokens else None


def new_request() -> RoutedRequest:
    request = GenerationRequest(
        id=ID,
        token_ids=PROMPT,
        sampling=SAMPLING,
        salt="salt",
        deadline_s=60.0,
        already_ended=already_ended,
    )
    return RoutedRequest(request, WIRE)


def route_apart(routed: RoutedRequest, *, remaining_s: float = 60.0) -> Send:
    return routed.begin_attempt("apart", prefill=PREFILL, decode=DECODE, remaining_s=remaining_s)


def route_alone(routed: RoutedRequest, *, remaining_s: float = 60.0) -> Send:
    return routed.begin_attempt("alone", prefill=None, decode=DECODE, remaining_s=remaining_s)


def in_state(state: RequestState) -> RoutedRequest:
    """In its first attempt; in DECODE after a hand-over."""
    routed = new_request()
    match state:
        case RequestState.PLACING:
            return routed
        case RequestState.FAILED | RequestState.ABORTED:
            routed.close("test", client_left=state is RequestState.ABORTED)
            return routed
        case _:
            route_apart(routed)
    if state is not RequestState.PREFILL:
        hear(routed, P, started())
    if state in (RequestState.DECODE, RequestState.FINISHED):
        hear(routed, D, landed())
    if state is RequestState.FINISHED:
        hear(routed, D, emit(0, EOS), finished("stop", num_tokens=1))
    return routed


def alone() -> RoutedRequest:
    routed = new_request()
    route_alone(routed)
    return routed


def hear(
    routed: RoutedRequest,
    worker: WorkerId,
    *messages: RequestMessage,
    epoch: Epoch = ONE,
    remaining_s: float = 60.0,
) -> list[Instruction]:
    """All that it answers to these messages of one worker."""
    return [
        instruction
        for message in messages
        for instruction in routed.accept_message(
            WorkerMessage(worker, epoch, message), remaining_s=remaining_s
        )
    ]


# -- what workers say ---------------------------------------------------------------------


def started(*, attempt: int = 1, ticket: Ticket = TICKET, cached_tokens: int = 4) -> Started:
    return Started(
        request=WIRE, attempt=attempt, ticket=ticket, cached_tokens=cached_tokens, queued_s=0.5
    )


def emit(index: int, token_id: int, *, attempt: int = 1) -> Emit:
    return Emit(
        request=WIRE,
        attempt=attempt,
        index=index,
        token_id=token_id,
        text=f"<{token_id}>",
        logprob=-0.5,
        top=(TokenLogprob(token_id=token_id, logprob=-0.5),),
    )


def prefill_done(*, attempt: int = 1) -> PrefillDone:
    return PrefillDone(request=WIRE, attempt=attempt, cached_tokens=4, queued_s=0.5, prefill_s=0.25)


def landed(*, attempt: int = 1) -> Landed:
    return Landed(
        request=WIRE,
        attempt=attempt,
        transport="shm",
        blocks_reused=1,
        blocks_moved=2,
        bytes_moved=64,
        fetch_s=0.02,
        exposed_s=0.01,
    )


def finished(
    reason: FinishReason, *, num_tokens: int, attempt: int = 1, stopped_by: str | None = None
) -> Finished:
    return Finished(
        request=WIRE,
        attempt=attempt,
        reason=reason,
        stopped_by=stopped_by,
        num_tokens=num_tokens,
        cached_tokens=4,
        queued_s=0.125,
        prefill_s=0.25,
        decode_s=0.75,
    )


def failed(code: FailCode, *, retryable: bool = True, attempt: int = 1) -> Failed:
    return Failed(request=WIRE, attempt=attempt, code=code, message="a reason", retryable=retryable)


def aborted(*, attempt: int = 1) -> Aborted:
    return Aborted(request=WIRE, attempt=attempt)


def gone(*unheard: RequestId) -> WorkerGone:
    """With these requests as the last that it was given."""
    return WorkerGone("was lost", frozenset(unheard))


# -- what it is to do ---------------------------------------------------------------------


def deliver(index: int, token_id: int, *, attempt: int = 1) -> Deliver:
    return Deliver(emit(index, token_id, attempt=attempt))


def send_abort(worker: WorkerId, reason: str, *, attempt: int = 1) -> Send:
    return Send(worker, ONE, Abort(request=WIRE, attempt=attempt, reason=reason))


def send_prefill(*, attempt: int = 1, generated: tuple[int, ...] = ()) -> Send:
    message = Prefill(
        request=WIRE,
        attempt=attempt,
        token_ids=PROMPT,
        generated=generated,
        sampling=SAMPLING,
        salt="salt",
        deadline_s=60.0,
    )
    return Send(P, ONE, message)


def send_decode(
    ticket: Ticket | None, *, attempt: int = 1, generated: tuple[int, ...] = ()
) -> Send:
    message = Decode(
        request=WIRE,
        attempt=attempt,
        token_ids=PROMPT,
        generated=generated,
        sampling=SAMPLING,
        salt="salt",
        deadline_s=60.0,
        ticket=ticket,
    )
    return Send(D, ONE, message)
