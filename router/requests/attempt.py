"""One try at a request on one pair of workers: who may hold blocks for it, what they are told."""

from dataclasses import dataclass

import msgspec

from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import Abort, Decode, Prefill, Ticket, ToWorker
from router.requests.events import GenerationRequest
from router.requests.instructions import Send
from router.workers.worker_messages import WorkerMessage


@dataclass(slots=True)
class Leg:
    """One worker's part; `open` while it may hold blocks for us."""

    worker: WorkerId
    epoch: Epoch
    open: bool = True

    def instruct(self, message: ToWorker) -> Send:
        return Send(self.worker, self.epoch, message)

    def is_sender(self, message: WorkerMessage) -> bool:
        return message.worker == self.worker and message.epoch == self.epoch


@dataclass(slots=True, kw_only=True)
class Attempt:
    request: GenerationRequest
    wire_id: RequestId
    number: int
    given: tuple[int, ...]
    """Output tokens that its workers are told of; they send those that follow."""
    prefill: Leg | None
    """None: `decode` computes the prompt itself."""
    decode: Leg
    block_tokens: int

    def leg_of(self, message: WorkerMessage) -> Leg | None:
        for leg in (self.decode, self.prefill):
            if leg is not None and leg.is_sender(message):
                return leg
        return None

    def first_message(self, remaining_s: float) -> Send:
        if self.prefill is None:
            return self.decode_message(None, remaining_s)
        return self.prefill.instruct(self._prefill_message(remaining_s))

    def decode_message(self, ticket: Ticket | None, remaining_s: float) -> Send:
        self.decode.open = True
        asked = msgspec.structs.asdict(self._prefill_message(remaining_s))
        return self.decode.instruct(Decode(**asked, ticket=ticket))

    def aborts(self, reason: str) -> list[Send]:
        """To whoever may hold blocks, once each."""
        sends = []
        for leg in (self.prefill, self.decode):
            if leg is not None and leg.open:
                leg.open = False
                abort = Abort(request=self.wire_id, attempt=self.number, reason=reason)
                sends.append(leg.instruct(abort))
        return sends

    def _prefill_message(self, remaining_s: float) -> Prefill:
        return Prefill(
            request=self.wire_id,
            attempt=self.number,
            token_ids=self.request.token_ids,
            generated=self.given,
            sampling=self.request.sampling,
            salt=self.request.salt,
            deadline_s=remaining_s,
            priority=self.request.priority,
        )
