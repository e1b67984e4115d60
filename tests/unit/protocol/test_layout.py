"""Byte arithmetic of a KV block."""

import dataclasses
import math

import msgspec
import pytest

from protocol.layout import DTYPE_BYTES, KvLayout, compat_hash

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
