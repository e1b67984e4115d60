"""Where a request can be between its arrival and its ending, and what leads from one to the next.

`docs/states.md` has the sentences that are for operators. Pure.
"""

from enum import StrEnum, auto
from typing import Final

from protocol.state_table import StateTable


class RequestState(StrEnum):
    PLACING = auto()
    """Nobody has it: it is being placed, or waits for a worker to come back."""
    PREFILL = auto()
    """A prefill worker was sent the prompt and has not begun yet."""
    HANDOVER = auto()
    """Prefill computes and decode fetches; the first token is sent from here."""
    DECODE = auto()
    """One decode worker has all it needs; no other worker matters any more."""
    FINISHED = auto()
    """The last token was delivered, and why it was the last."""
    FAILED = auto()
    """It was given up; the error has the reason of every attempt."""
    ABORTED = auto()
    """The client left; its workers were told."""


class RequestEvent(StrEnum):
    ROUTED_APART = auto()
    ROUTED_ALONE = auto()
    STARTED = auto()
    LANDED = auto()
    LOST = auto()
    ENDED_WELL = auto()
    GIVEN_UP = auto()
    CLOSED = auto()


WITH_WORKERS: Final = (RequestState.PREFILL, RequestState.HANDOVER, RequestState.DECODE)
"""States in which a worker has the request, so that what it says matters."""
_UNENDED: Final = (RequestState.PLACING, *WITH_WORKERS)
REQUEST_TABLE: Final = StateTable(
    {
        (RequestState.PLACING, RequestEvent.ROUTED_APART): RequestState.PREFILL,
        (RequestState.PLACING, RequestEvent.ROUTED_ALONE): RequestState.DECODE,
        (RequestState.PREFILL, RequestEvent.STARTED): RequestState.HANDOVER,
        (RequestState.HANDOVER, RequestEvent.LANDED): RequestState.DECODE,
        **{(state, RequestEvent.LOST): RequestState.PLACING for state in WITH_WORKERS},
        **{(state, RequestEvent.ENDED_WELL): RequestState.FINISHED for state in WITH_WORKERS},
        **{(state, RequestEvent.GIVEN_UP): RequestState.FAILED for state in _UNENDED},
        **{(state, RequestEvent.CLOSED): RequestState.ABORTED for state in _UNENDED},
    }
)
