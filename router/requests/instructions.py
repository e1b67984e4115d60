"""What reaches a flight and what it answers: letters in, instructions out.

A letter is one word of one worker incarnation. `router.workers.registry` writes letters,
`router.requests.request` reads them, `router.requests.dispatch` carries the instructions out.
"""

from dataclasses import dataclass

from protocol.errors import BatonError
from protocol.ids import Epoch, WorkerId
from protocol.messages import (
    FinishReason,
    ToWorker,
)
from router.requests.events import Token


@dataclass(frozen=True, slots=True)
class Send:
    worker: WorkerId
    epoch: Epoch
    message: ToWorker


@dataclass(frozen=True, slots=True)
class Deliver:
    token: Token


@dataclass(frozen=True, slots=True)
class PlaceAgain:
    """The attempt was lost; choose again, without `suspect` if that can be helped."""

    why: str
    suspect: WorkerId | None
    is_refusal: bool
    """True: `suspect` had no room, and did not fail."""


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class GiveUp:
    error: BatonError


Instruction = Send | Deliver | PlaceAgain | Finish | GiveUp
