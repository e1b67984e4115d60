"""What a request answers to a message of a worker: what is to be done now, in that order."""

from dataclasses import dataclass

from protocol.errors import BatonError
from protocol.ids import Epoch, WorkerId
from protocol.messages import Emit, ToWorker
from router.requests.ending import EndWell
from router.requests.events import Read


@dataclass(frozen=True, slots=True)
class Send:
    worker: WorkerId
    epoch: Epoch
    message: ToWorker


@dataclass(frozen=True, slots=True)
class Deliver:
    event: Emit | Read


@dataclass(frozen=True, slots=True)
class PlaceAgain:
    """The attempt was lost; choose again, without `suspect` if that can be helped."""

    why: str
    suspect: WorkerId | None
    is_refusal: bool
    """True: `suspect` had no room, and did not fail."""
    is_stall: bool = False
    """True: `suspect` said nothing for too long, and may live."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    error: BatonError


Instruction = Send | Deliver | PlaceAgain | EndWell | GiveUp
