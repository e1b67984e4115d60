import pytest

from engine.batch import SequenceId
from engine.kvcache.allocator import BlockAllocator
from engine.kvcache.block_table import BlockTable
from engine.kvcache.prefix_cache import PrefixCache
from engine.sequence import SEQUENCE_TABLE, Mode, Sequence, SequenceEvent, SequenceState
from protocol.messages import Sampling
from protocol.state_table import IllegalTransition


def sequence(prompt: list[int], outputs: list[int], *, repetition_penalty: float = 1.0) -> Sequence:
    blocks = BlockAllocator(1, generations=[0])
    cache = PrefixCache(blocks, block_tokens=4, compat="test")
    return Sequence(
        id=SequenceId("s"),
        prompt=prompt,
        outputs=outputs,
        sampling=Sampling(seed=1, max_tokens=8, repetition_penalty=repetition_penalty),
        mode=Mode.LOCAL,
        block_table=BlockTable(cache, salt="", lent=False),
    )


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0, 2, [1, 2]), (1, 5, [2, 3, 4, 5]), (3, 5, [4, 5]), (4, 4, []), (0, 9, [1, 2, 3, 4, 5])],
)
def test_tokens_run_from_the_prompt_into_the_outputs(
    start: int, stop: int, expected: list[int]
) -> None:
    assert sequence([1, 2, 3], [4, 5]).tokens(start, stop) == expected


def test_the_distinct_tokens_of_a_prompt_are_collected_once_and_only_for_a_penalty() -> None:
    assert not sequence([7, 7, 5], []).prompt_ids
    penalised = sequence([7, 7, 5], [], repetition_penalty=1.2)
    assert sorted(penalised.prompt_ids) == [5, 7]
    assert penalised.prompt_ids is penalised.prompt_ids


def test_a_missing_row_raises_with_the_whole_history() -> None:
    moved = sequence([1], [])
    moved.move(SequenceEvent.ADMITTED)
    moved.move(SequenceEvent.PREEMPTED)
    with pytest.raises(IllegalTransition, match=r"landed in state waiting.*preempted->waiting"):
        moved.move(SequenceEvent.LANDED)


def test_every_state_is_reached_and_every_state_but_the_last_is_left() -> None:
    assert set(SEQUENCE_TABLE.rows.values()) | {SequenceState.COMPILING} == set(SequenceState)
    assert {state for state, _ in SEQUENCE_TABLE.rows} == set(SequenceState) - {SequenceState.FREED}


def test_every_event_has_a_row() -> None:
    assert {event for _, event in SEQUENCE_TABLE.rows} == set(SequenceEvent)
