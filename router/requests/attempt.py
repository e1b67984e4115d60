"""One try at a request on one pair of workers: who may hold blocks for it, what they are told."""

from dataclasses import dataclass
from typing import Any

import msgspec

from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import (
    Abort,
    Decode,
    OfAttempt,
    Prefill,
    PrefixSource,
    ReadPrompt,
    Ticket,
    ToWorker,
)
from protocol.readings import PromptReading
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
    reading: PromptReading | None = None
    """What its workers are to say of the prompt."""
    generates: bool = True
    """False: its one worker, `decode` whatever its role, is asked for the prompt's reading, and for
    one token at most."""
    prefix_source: PrefixSource | None = None
    """From where whoever computes the prompt is to fetch its beginning."""
    fork_of: OfAttempt | None = None
    """Alone: a request on `decode` from whose KV it goes on."""
    is_ended: bool = False
    """All tokens are there: what is read of the prompt alone is lacking."""

    def leg_of(self, message: WorkerMessage) -> Leg | None:
        for leg in (self.decode, self.prefill):
            if leg is not None and leg.is_sender(message):
                return leg
        return None

    def first_message(self, remaining_s: float) -> Send:
        if not self.generates:
            return self.decode.instruct(ReadPrompt(**self._asked(remaining_s)))
        if self.prefill is None:
            return self.decode_message(None, remaining_s)
        return self.prefill.instruct(Prefill(**self._asked(remaining_s)))

    def decode_message(self, ticket: Ticket | None, remaining_s: float) -> Send:
        self.decode.open = True
        asked = self._asked(remaining_s)
        if ticket is not None:
            asked["reading"] = asked["prefix_source"] = None  # of whoever computes the prompt
        return self.decode.instruct(Decode(**asked, ticket=ticket, fork_of=self.fork_of))

    def aborts(self, reason: str) -> list[Send]:
        """To whoever may hold blocks, once each."""
        sends = []
        for leg in (self.prefill, self.decode):
            if leg is not None and leg.open:
                leg.open = False
                abort = Abort(request=self.wire_id, attempt=self.number, reason=reason)
                sends.append(leg.instruct(abort))
        return sends

    def _asked(self, remaining_s: float) -> dict[str, Any]:
        """The fields of `protocol.messages.ToCompute`."""
        sampling = self.request.sampling
        if self.is_ended:
            sampling = msgspec.structs.replace(sampling, max_tokens=0, min_tokens=0)
        return {
            "request": self.wire_id,
            "attempt": self.number,
            "token_ids": self.request.token_ids,
            "generated": () if self.is_ended else self.given,
            "sampling": sampling,
            "salt": self.request.salt,
            "deadline_s": remaining_s,
            "priority": self.request.priority,
            "reading": self.reading,
            "prefix_source": self.prefix_source,
        }
