import pytest
from support.forwards import chunk

from engine.batch import PENDING
from engine.ops.inputs import forward_inputs


def test_a_ragged_batch_is_laid_out_token_by_token() -> None:
    inputs = forward_inputs(
        [
            chunk([7, 8, 9], start=3, table=[5, 2], sampling=None),
            chunk([4], start=8, table=[1, 0, 6]),
        ],
        block_tokens=4,
    )
    assert inputs.token_ids_T.tolist() == [7, 8, 9, 4]
    assert inputs.positions_T.tolist() == [3, 4, 5, 8]
    assert inputs.slots_GT.tolist() == [[23, 8, 9, 24]]
    assert inputs.starts_S1.tolist() == [0, 3, 4]
    assert inputs.ends_S.tolist() == [6, 9]
    assert inputs.tables_GSB.tolist() == [[[5, 2, 0], [1, 0, 6]]]
    assert inputs.rows_R.tolist() == [3]


def test_a_step_of_decodes_alone_is_laid_out_alike() -> None:
    """Beside a prefill and without it the same decodes get the same places."""
    decodes = [chunk([s], start=3 + s, table=[s, 9 - s, 20 + s]) for s in range(4)]
    alone = forward_inputs(decodes, block_tokens=4)
    beside = forward_inputs([*decodes, chunk([1, 2], table=[30])], block_tokens=4)
    assert len(alone.token_ids_T) == alone.num_sequences == 4
    assert alone.slots_GT.tolist() == beside.slots_GT[:, :4].tolist()
    assert alone.positions_T.tolist() == beside.positions_T[:4].tolist() == [3, 4, 5, 6]
    assert alone.rows_R.tolist() == beside.rows_R[:4].tolist() == [0, 1, 2, 3]


def test_a_token_is_turned_for_its_whole_prompt_or_for_its_own_place() -> None:
    chunks = [
        chunk([7, 8, 9], start=3, table=[5, 2], num_prompt=7, sampling=None),
        chunk([7, 8, 9], start=3, table=[5, 2], num_prompt=4),
        chunk([4], start=8, table=[1, 0, 6], num_prompt=3),
    ]
    reaches_T = forward_inputs(chunks, block_tokens=4, reaches=True).reaches_T
    assert reaches_T is not None and reaches_T.tolist() == [7, 7, 7, 4, 5, 6, 9]
    assert forward_inputs(chunks, block_tokens=4).reaches_T is None


def test_each_group_has_its_table_and_a_block_nobody_reaches_is_0() -> None:
    inputs = forward_inputs(
        [chunk([3], start=5, table=[4, -1, 7, 8]), chunk([3], table=[1, 2])],
        block_tokens=4,
        num_groups=2,
    )
    assert inputs.tables_GSB.tolist() == [[[4, 7], [1, 0]], [[0, 8], [2, 0]]]
    assert inputs.slots_GT.tolist() == [[29, 4], [33, 8]]


def test_a_token_nobody_has_read_stays_marked() -> None:
    inputs = forward_inputs([chunk([PENDING], start=2, table=[1])], block_tokens=4)
    assert inputs.token_ids_T.tolist() == [PENDING]


@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_table_too_short_is_refused_with_the_numbers(num_groups: int) -> None:
    good = chunk([1], table=[0] * num_groups)
    bad = chunk([1, 2], start=3, table=[0] * num_groups, sequence="bad")
    with pytest.raises(ValueError, match="chunk bad: 2 tokens from 3 on do not fit 1 blocks of 4"):
        forward_inputs([good, bad], block_tokens=4, num_groups=num_groups)


def test_a_token_without_a_block_to_go_to_is_refused() -> None:
    with pytest.raises(ValueError, match="no block to write"):
        forward_inputs([chunk([1, 2], start=3, table=[0, -1])], block_tokens=4)
