"""What one worker incarnation has said of one request."""

from dataclasses import dataclass

from protocol.ids import Epoch, WorkerId
from protocol.messages import Aborted, Emit, Failed, Finished, Landed, PrefillDone, Started


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """Said by the registry, not by a worker: this incarnation will say nothing more."""

    reason: str


RequestMessage = Started | PrefillDone | Landed | Finished | Failed | Aborted | Emit | WorkerGone


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """One message of one worker incarnation."""

    worker: WorkerId
    epoch: Epoch
    message: RequestMessage
