"""Byte arithmetic of a KV block."""

import dataclasses
import math

import msgspec
import pytest

from protocol.layout import (
    ALL_TOKENS,
    DTYPE_BYTES,
    KvLayout,
    LatentLayout,
    Layout,
    StateLayout,
    compat_hash,
    shard,
    transfer_compat,
)

LAYOUT = KvLayout(num_layers=4, num_kv_heads=2, head_dim=32, block_tokens=16, dtype="bfloat16")


def test_a_block_holds_keys_and_values_of_all_layers() -> None:
    assert LAYOUT.block_bytes == math.prod(LAYOUT.shape) * DTYPE_BYTES["bfloat16"]


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_a_partly_filled_block_counts_whole(tokens: int, blocks: int) -> None:
    assert LAYOUT.num_blocks(tokens) == blocks


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 5}, {"num_kv_heads": 1}, {"head_dim": 64}, {"block_tokens": 8}, {"version": 2}],
)
def test_any_other_layout_is_another_compat_hash(change: dict[str, int]) -> None:
    other = msgspec.structs.replace(LAYOUT, **change)
    assert compat_hash(other, model_revision="r") != compat_hash(LAYOUT, model_revision="r")


def test_another_revision_of_the_model_is_another_compat_hash() -> None:
    assert compat_hash(LAYOUT, model_revision="a") != compat_hash(LAYOUT, model_revision="b")


def test_a_layout_cannot_be_changed() -> None:
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        LAYOUT.num_layers = 1  # type: ignore[misc]  # that it fails is what we test


LATENT = LatentLayout(num_layers=4, latent_dim=576, block_tokens=16, dtype="bfloat16")
STATE = StateLayout(num_bytes=4096)


def test_ranks_hold_the_heads_in_order() -> None:
    four = msgspec.structs.replace(LAYOUT, num_kv_heads=4)
    assert [shard(four, rank=rank, size=2).heads for rank in range(2)] == [range(2), range(2, 4)]
    assert shard(four, rank=1, size=2).block_bytes == four.block_bytes // 2


def test_more_ranks_than_heads_share_them() -> None:
    starts = [shard(LAYOUT, rank=rank, size=8).heads for rank in range(8)]
    assert starts == [range(head, head + 1) for head in (0, 0, 0, 0, 1, 1, 1, 1)]


def test_one_rank_holds_the_layout_itself() -> None:
    assert shard(LAYOUT, rank=0, size=1) == LAYOUT
    assert msgspec.structs.replace(LAYOUT, total_kv_heads=2) == LAYOUT


def test_a_latent_is_held_whole_by_every_rank() -> None:
    assert shard(LATENT, rank=3, size=8) == LATENT
    assert LATENT.block_bytes == math.prod(LATENT.shape) * DTYPE_BYTES["bfloat16"]


def test_a_state_is_one_block_however_many_tokens_it_stands_for() -> None:
    assert [STATE.num_blocks(tokens) for tokens in (0, 1, 100_000)] == [0, 1, 1]
    assert (STATE.block_bytes, STATE.block_tokens) == (4096, ALL_TOKENS)


@pytest.mark.parametrize(
    ("layout", "rank", "size", "why"),
    [
        (LAYOUT, 2, 2, "rank: is 2"),
        (LAYOUT, 0, 3, "size: is 3"),
        (shard(LAYOUT, rank=0, size=2), 0, 2, "already a part"),
        (STATE, 0, 2, "opaque"),
    ],
)
def test_what_cannot_be_dealt_to_ranks_is_refused(
    layout: Layout, rank: int, size: int, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        shard(layout, rank=rank, size=size)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_layers", 0), ("head_dim", 1 << 21), ("block_tokens", -1), ("first_head", 1),
     ("first_head", -1), ("total_kv_heads", 1)],
)  # fmt: skip
def test_counts_out_of_bounds_are_refused_when_a_layout_is_read(field: str, value: int) -> None:
    bad = msgspec.json.encode(msgspec.to_builtins(LAYOUT) | {field: value})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(bad, type=KvLayout)


@pytest.mark.parametrize("layout", [LAYOUT, shard(LAYOUT, rank=1, size=2), LATENT, STATE])
def test_a_layout_survives_the_wire(layout: Layout) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(layout), type=Layout) == layout


def test_what_a_plan_can_map_is_left_out_of_the_transfer_compat() -> None:
    same = [LAYOUT, shard(LAYOUT, rank=1, size=2), msgspec.structs.replace(LAYOUT, block_tokens=32)]
    assert len({transfer_compat(layout, model_revision="r") for layout in same}) == 1
    assert len({compat_hash(layout, model_revision="r") for layout in same}) == 3


@pytest.mark.parametrize(
    "other",
    [msgspec.structs.replace(LAYOUT, **{name: value})
     for name, value in (("num_layers", 5), ("num_kv_heads", 1), ("head_dim", 64), ("version", 2),
                         ("dtype", "float16"))] + [LATENT, STATE],
)  # fmt: skip
def test_what_a_plan_cannot_map_is_another_transfer_compat(other: Layout) -> None:
    ours = transfer_compat(LAYOUT, model_revision="r")
    assert transfer_compat(other, model_revision="r") != ours
    assert transfer_compat(LAYOUT, model_revision="s") != ours
