"""What ranks take of a checkpoint tiles it: their answers together are those of one rank."""

# Shapes: T tokens, K hidden size.

from pathlib import Path

import pytest
import torch
from support.family_shapes import SHAPES
from support.forwards import chunk
from torch import Tensor

from engine.checkpoint.loader import Loader
from engine.checkpoint.safetensors import Checkpoint
from engine.checkpoint.shard import WHOLE, Cut, Shard
from engine.kvcache.pool import KvPool
from engine.models.config import ModelConfig, read_config
from engine.models.model import Model
from engine.models.parts import Parts
from engine.ops.inputs import forward_inputs
from engine.ops.torch_ops import TorchOps
from protocol.layout import shard as layout_of_rank
from tools.make_checkpoint import Shape, make_checkpoint

HALVES = (Shard(rank=0, world=2), Shard(rank=1, world=2))
BLOCKS = Shape(family="gpt_oss", bias=True, head_dim=16, hidden=64, mlp=64, expert_form="mxfp4")
EVEN = {name: shape for name, shape in SHAPES.items() if not name.startswith("olmo")}
"""OLMo's norms of q and k see all heads, which no rank has."""


def parts_of(path: Path, config: ModelConfig, shard: Shard) -> Parts:
    return Loader(
        config, Checkpoint(path), TorchOps(io_dtype=torch.float32), dtype=torch.float32,
        device=torch.device("cpu"), progress=None, shard=shard,
    ).parts()  # fmt: skip


def mixed(parts: Parts, config: ModelConfig, x_TK: Tensor, shard: Shard) -> list[Tensor | None]:
    """Of each layer's mixer, over a pool with the heads of the rank."""
    (layout,) = config.kv_layouts(block_tokens=8, dtype="float32")
    pool = KvPool(layout_of_rank(layout, rank=shard.rank, size=shard.world), 4 * layout.num_groups)
    table = range(2 * layout.num_groups)
    chunks = [chunk(list(range(len(x_TK))), table=table)]
    inputs = forward_inputs(chunks, block_tokens=8, num_groups=layout.num_groups)
    turns = Model(config, TorchOps(io_dtype=torch.float32), parts).turns(inputs)
    return [layer.mixer(x_TK, inputs, pool, turns, None) for layer in parts.layers]


@pytest.mark.parametrize("shape", [*EVEN.values(), BLOCKS], ids=[*EVEN, "gpt-oss-blocks"])
def test_the_answers_of_two_ranks_sum_to_those_of_one(tmp_path: Path, shape: Shape) -> None:
    make_checkpoint(tmp_path, shape)
    config = read_config(tmp_path)
    x_TK = torch.randn(11, config.hidden_size, generator=torch.Generator().manual_seed(1))
    whole, *halves = (parts_of(tmp_path, config, shard) for shard in (WHOLE, *HALVES))
    wanted = mixed(whole, config, x_TK, WHOLE)
    answers = [mixed(half, config, x_TK, shard) for half, shard in zip(halves, HALVES, strict=True)]
    for want, one, other in zip(wanted, *answers, strict=True):
        assert want is not None and one is not None and other is not None
        torch.testing.assert_close(one + other, want, rtol=1e-4, atol=1e-5)
    for layer, one_layer, other_layer in zip(
        whole.layers, *(half.layers for half in halves), strict=True
    ):
        sums_TK = one_layer.mlp(x_TK) + other_layer.mlp(x_TK)
        torch.testing.assert_close(sums_TK, layer.mlp(x_TK), rtol=1e-4, atol=1e-5)


def test_sections_are_shared_each_by_itself_in_units_that_stay_whole() -> None:
    cut = Cut(axis=0, sections=(8, 4), unit=2)
    rows = torch.arange(12)
    assert [cut.part_of(rows, half).tolist() for half in HALVES] == [
        [0, 1, 2, 3, 8, 9],
        [4, 5, 6, 7, 10, 11],
    ]
    assert cut.part_of(rows, WHOLE) is rows


def test_more_ranks_than_heads_share_them() -> None:
    shares = [Shard(rank=rank, world=4).share_of(16, unit=8) for rank in range(4)]
    assert shares == [(0, 8), (0, 8), (8, 8), (8, 8)]


def test_what_cannot_be_dealt_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="world: is 2, must divide 3"):
        HALVES[0].share_of(3)
    with pytest.raises(ValueError, match="rank: is 2, must be 0 to 1"):
        Shard(rank=2, world=2)
