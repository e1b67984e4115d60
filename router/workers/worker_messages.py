"""What one worker incarnation has said of one request."""

from dataclasses import dataclass

from protocol.ids import Epoch, RequestId, WorkerId
from protocol.messages import (
    Aborted,
    Emit,
    Failed,
    Finished,
    Landed,
    PrefillDone,
    PromptScores,
    PromptVector,
    Started,
)


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """Said by the registry, not by a worker: this incarnation will say nothing more."""

    reason: str
    unheard: frozenset[RequestId] = frozenset()
    """The last it was given: requests of this router of which it had said no token."""


RequestMessage = (
    Started | PrefillDone | Landed | Finished | Failed | Aborted | Emit | PromptScores
    | PromptVector | WorkerGone
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """One message of one worker incarnation."""

    worker: WorkerId
    epoch: Epoch
    message: RequestMessage
