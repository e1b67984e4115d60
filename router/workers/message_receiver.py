"""Who is told what workers say of one request, at once."""

from typing import Protocol

from protocol.ids import Epoch, WorkerId
from protocol.messages import Emit
from router.workers.worker_messages import WorkerMessage


class MessageReceiver(Protocol):
    """`now` is a reading of the registry's clock. Raises nothing: what goes wrong with one request
    is no fault of the worker that spoke of it."""

    def accept_emit(self, emit: Emit, worker: WorkerId, epoch: Epoch, now: float) -> None:
        """One token that this incarnation said."""

    def accept_message(self, message: WorkerMessage, *, now: float) -> None:
        """Anything that an incarnation said; a token, too."""
