"""Where a request can be between its arrival and its ending: the table of `router.flight`."""

from enum import StrEnum, auto


class Stage(StrEnum):
    """Where the request is; `docs/states.md` says one sentence of each."""

    PLACING = auto()
    PREFILL = auto()
    HANDOVER = auto()
    DECODE = auto()
    FINISHED = auto()
    FAILED = auto()
    ABORTED = auto()


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
