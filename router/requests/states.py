"""Where a request can be between its arrival and its ending: the table of
`router.requests.request`."""

from enum import StrEnum, auto


class Stage(StrEnum):
    """Where the request is; `docs/states.md` says one sentence of each."""

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


class Move(StrEnum):
    ROUTED_APART = auto()
    ROUTED_ALONE = auto()
    STARTED = auto()
    LANDED = auto()
    LOST = auto()
    ENDED_WELL = auto()
    GIVEN_UP = auto()
    CLOSED = auto()


TABLE = {
    (Stage.PLACING, Move.ROUTED_APART): Stage.PREFILL,
    (Stage.PLACING, Move.ROUTED_ALONE): Stage.DECODE,
    (Stage.PREFILL, Move.STARTED): Stage.HANDOVER,
    (Stage.HANDOVER, Move.LANDED): Stage.DECODE,
    **{
        (stage, Move.LOST): Stage.PLACING for stage in (Stage.PREFILL, Stage.HANDOVER, Stage.DECODE)
    },
    **{
        (stage, move): ending
        for stage in (Stage.PLACING, Stage.PREFILL, Stage.HANDOVER, Stage.DECODE)
        for move, ending in (
            (Move.ENDED_WELL, Stage.FINISHED),
            (Move.GIVEN_UP, Stage.FAILED),
            (Move.CLOSED, Stage.ABORTED),
        )
    },
}
ENDINGS = frozenset({Stage.FINISHED, Stage.FAILED, Stage.ABORTED})
