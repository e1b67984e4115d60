"""How attention's work is cut on the host: every key of every row once, whatever the others are."""

# Shapes: S sequences, G KV groups.

from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.ops import work as cutting
from engine.ops.work import SPLIT_TOKENS, AttentionWork, decode_work, slots, split_size, work

LENGTHS = st.integers(1, 3) | st.integers(1, 700)
SEQUENCES = st.lists(st.tuples(LENGTHS, st.integers(0, 9_000)), min_size=1, max_size=9)
WINDOWS = st.lists(st.none() | st.integers(1, 3_000), min_size=1, max_size=3)


def cut(
    sequences: list[tuple[int, int]], windows: list[int | None]
) -> tuple[np.ndarray, AttentionWork]:
    lengths_S, befores_S = np.array(sequences, np.int64).T
    slots_GS1 = slots(lengths_S, lengths_S + befores_S, windows)
    return slots_GS1, work(lengths_S, slots_GS1)


@given(SEQUENCES, WINDOWS)
def test_every_key_that_a_row_sees_is_in_exactly_one_split(
    sequences: list[tuple[int, int]], windows: list[int | None]
) -> None:
    slots_GS1, _ = cut(sequences, windows)
    for group, window in enumerate(windows):
        for s, (length, before) in enumerate(sequences):
            held = int(slots_GS1[group, s + 1] - slots_GS1[group, s])
            num_splits, size = held // length or 1, split_size(length)
            first = 0 if window is None else max(0, before - window + 1) // size
            assert held % length == 0 and (held > 0 or length > 1)
            assert first * size <= max(0, before - (window or before + 1) + 1)
            assert (first + num_splits - 1) * size < before + length <= (first + num_splits) * size


@given(SEQUENCES, WINDOWS, st.integers(1, 200))
def test_passes_hold_every_sequence_once_within_the_scratch(
    sequences: list[tuple[int, int]], windows: list[int | None], most: int
) -> None:
    with patch.object(cutting, "MOST_SLOTS", most):
        slots_GS1, cuts = cut(sequences, windows)
    for slots_S1, passes in zip(slots_GS1, cuts.passes_G, strict=True):
        assert [one.first for one in passes] == [0, *(one.last for one in passes[:-1])]
        assert passes[-1].last == len(sequences)
        for one in passes:
            assert one.first < one.last and one.first_slot == slots_S1[one.first]
            assert one.num_slots == slots_S1[one.last] - one.first_slot
            assert one.num_slots <= most or one.last == one.first + 1
            splits = np.diff(slots_S1[one.first : one.last + 1])
            lengths = np.array([length for length, _ in sequences[one.first : one.last]])
            assert one.joined or not (splits > lengths).any()
            assert one.joined or not (splits[lengths > 1]).any()


@given(SEQUENCES, WINDOWS, SEQUENCES)
def test_a_sequence_is_cut_alike_in_any_company(
    sequences: list[tuple[int, int]], windows: list[int | None], others: list[tuple[int, int]]
) -> None:
    alone, _ = cut(sequences, windows)
    beside, _ = cut([*sequences, *others], windows)
    assert (beside[:, : len(sequences) + 1] == alone).all()


@given(st.lists(st.integers(0, 9_000), min_size=1, max_size=9))
def test_a_captured_step_has_room_for_every_step_of_its_size(befores: list[int]) -> None:
    slots_GS1, cuts = cut([(1, before) for before in befores], [None])
    ((room,),) = decode_work(len(befores), num_groups=1, max_context_tokens=9_001).passes_G
    assert slots_GS1[0, -1] <= room.num_slots and cuts.chunk_splits == 0 and cuts.has_decodes


def test_a_prompt_from_its_beginning_is_never_split() -> None:
    for length in (2, 100, 512, 2_048, 8_192):
        slots_GS1, cuts = cut([(length, 0)], [None])
        assert slots_GS1.tolist() == [[0, 0]]
        assert cuts.chunk_splits == 1 and not cuts.passes_G[0][0].joined


def test_splits_are_of_512_tokens_for_decodes_and_as_much_longer_as_a_chunk_is() -> None:
    assert SPLIT_TOKENS == 512
    assert [split_size(n) for n in (1, 4, 5, 64)] == [512, 512, 1_024, 8_192]
    assert cut([(1, 511), (1, 512), (16, 4_096)], [None])[0].tolist() == [[0, 1, 3, 3 + 16 * 3]]


def test_scratch_of_a_captured_step_is_bounded_by_rows_and_context_and_by_slots() -> None:
    def room(size: int, context: int) -> int:
        ((one,),) = decode_work(size, num_groups=1, max_context_tokens=context).passes_G
        return one.num_slots

    assert room(32, 2_048) == 32 * 4 and room(1, 131_072) == 256
    assert room(256, 131_072) == cutting.MOST_SLOTS and room(4, 100) == 4
