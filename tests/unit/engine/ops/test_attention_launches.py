"""What attention launches for a step, counted: programs, keys of the busiest, passes, scratch."""

# Shapes: S sequences, G KV groups.

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.meta_steps import heads, inputs, layer_pool, meta

from engine.ops import work as cutting
from engine.ops.triton import attention
from engine.ops.work import SPLIT_TOKENS, AttentionWork, decode_work, slots, work

SHAPE = heads(128)


class Recorded:
    """A kernel that remembers its grids and the float32 scratch it was given."""

    def __init__(self) -> None:
        self.grids = list[tuple[int, ...]]()
        self.slots = list[int]()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **named: object) -> None:
            self.grids.append(grid)
            self.slots.append(args[3].numel() // (SHAPE.num_heads * (SHAPE.head_dim + 2)))

        return launch


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(attention, "decode_kernel", recorded)
    monkeypatch.setattr(attention, "reduce_splits", lambda *args, **named: None)
    return recorded


def attend(work: AttentionWork, num_sequences: int) -> None:
    given = replace(inputs(num_sequences, num_sequences), work=work)
    attention.attention(meta(num_sequences, 48, 128)[:, :32], layer_pool(128), given, SHAPE)


def cut(contexts: Sequence[int]) -> tuple[np.ndarray, AttentionWork]:
    lengths_S = np.ones(len(contexts), np.int64)
    slots_GS1 = slots(lengths_S, np.array(contexts, np.int64), [None])
    return slots_GS1, work(lengths_S, slots_GS1)


def busiest(contexts: Sequence[int], programs: int) -> int:
    """Keys of the program that has the most, when each takes every so many-th split."""
    keys = [min(SPLIT_TOKENS, c - at) for c in contexts for at in range(0, c, SPLIT_TOKENS)]
    return max(sum(keys[first::programs]) for first in range(programs))


ALIKE = [1_024] * 32
RAGGED = [65_536, *[1_024] * 31]


@pytest.mark.parametrize("contexts", [ALIKE, RAGGED], ids=["alike", "ragged"])
@pytest.mark.parametrize("longest", [None, 65_537, 131_072])
def test_a_long_neighbour_and_the_largest_context_cost_a_program_nothing(
    decodes: Recorded, contexts: list[int], longest: int | None
) -> None:
    """Launched by real lengths, or captured for contexts up to `longest`."""
    room = None if longest is None else decode_work(32, num_groups=1, max_context_tokens=longest)
    attend(room or cut(contexts)[1], 32)
    ((num_kv_heads, programs, _),) = decodes.grids
    assert num_kv_heads == 8 and busiest(contexts, programs) == SPLIT_TOKENS


def test_rows_in_one_split_need_no_scratch_and_others_one_slot_a_split(decodes: Recorded) -> None:
    for contexts in ([400] * 200, RAGGED):
        attend(cut(contexts)[1], len(contexts))
    assert decodes.slots == [0, 128 + 31 * 2]


def test_contexts_that_many_share_are_read_in_passes_within_the_scratch(
    decodes: Recorded,
) -> None:
    _, cuts = cut([131_072] * 100)
    attend(cuts, 100)
    assert len(decodes.grids) == 4 == len(cuts.passes_G[0])
    assert max(decodes.slots) <= cutting.MOST_SLOTS < 100 * 256


def test_captured_programs_are_bounded_whatever_the_longest_context(decodes: Recorded) -> None:
    for longest in (2_048, 131_072, 10_000_000):
        attend(decode_work(256, num_groups=1, max_context_tokens=longest), 256)
    assert {programs * heads for heads, programs, _ in decodes.grids} == {attention.MOST_PROGRAMS}
    assert max(decodes.slots) == cutting.MOST_SLOTS


def test_inputs_without_the_hosts_part_are_refused() -> None:
    given = replace(inputs(4, 4), work=None)
    with pytest.raises(ValueError, match="work: None, must be made on the host"):
        attention.attention(meta(4, 48, 128)[:, :32], layer_pool(128), given, SHAPE)


def test_an_empty_step_launches_nothing(decodes: Recorded) -> None:
    attention.attention(meta(0, 32, 128), layer_pool(128), inputs(0, 0), SHAPE)
    assert not decodes.grids
